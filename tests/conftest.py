"""Imports Hypothesis before the first test.

Its plugin would import it after the last one, for its summary. By then CPython 3.11's parser may have lost count of its
recursion (`SystemError: AST constructor recursion depth mismatch`, cpython#106905), and pytest ends with a traceback
although every test has passed.
"""

import hypothesis  # noqa: F401
