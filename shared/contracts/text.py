"""Text that can be written: what UTF-8 has no bytes for is shown escaped instead of raising.

Python makes lone surrogates of file names and of JSON's `\\udcff`; no encoder of a record, of Redis or of HTTP takes
them.
"""


def writable(text: str) -> str:
    r"""Return the text with each lone surrogate written out as `\udcff`; any other text comes back as it is."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text
