"""What a regular expression (RE2, github.com/google/re2/wiki/Syntax) costs, told from its text.

RE2 never backtracks, so the work is bounded by the text's length times the instructions of the compiled pattern; but
both may be large: `((x?){30}){30}` has 900 of them in 14 characters, `\\pL` alone takes a millisecond to compile, and
CEL compiles the pattern again for every call.
"""

import re
from functools import lru_cache
from typing import Final

PATTERN_STEP: Final = 512  # to compile one instruction, in units of an expression's cost
_PER_STEP: Final = 16  # an instruction looks at a byte when the automaton's states outgrow RE2's cache
_PER_BYTE: Final = 8  # they never do where nothing but texts are alternatives
_BASE: Final = 16  # instructions of the empty pattern: what a call costs
_WIDE: Final = 8  # a class beyond ASCII
_UNICODE: Final = 4_096  # `\pL`: hundreds of ranges of UTF-8
_ANY_CASE: Final = 4

_ATOM: Final = re.compile(
    r"\\[pP](?:\{[^}]*\}|.)?|\\x\{[^}]*\}|\\.|\{(?P<least>\d+)(?:,(?P<most>\d*))?\}"
    r"|\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]|.",
    re.DOTALL,
)
_TEXTS: Final = re.compile(r"[\w\s/:;,=<>@#%&'\"~!|^$-]*", re.ASCII)
_ANY_CASE_FLAG: Final = re.compile(r"\(\?\w*i")


@lru_cache(maxsize=1024)
def pattern_steps(pattern: str) -> int:
    """Return how many instructions RE2 makes of a pattern at most, counted repetitions written out."""
    groups, last = [0], 0
    for atom in _ATOM.finditer(pattern):
        text = atom[0]
        if atom["least"] is not None:
            more = last * (max(int(atom["least"]), int(atom["most"] or 0), 1) - 1)
            groups[-1] += more
            last += more
        elif text == "(":
            groups.append(0)
            last = 0
        elif text == ")" and len(groups) > 1:
            last = groups.pop() + 2
            groups[-1] += last
        else:
            steps = 1 if text in "*+?" else _steps(text)
            groups[-1] += steps
            last = last + 1 if text in "*+?" else steps
    return _BASE + sum(groups) * (_ANY_CASE if _ANY_CASE_FLAG.search(pattern) else 1)


def _steps(atom: str) -> int:
    if "\\p" in atom or "\\P" in atom:
        return _UNICODE * (atom.count("\\p") + atom.count("\\P"))
    if len(atom) == 1:
        return _WIDE if atom == "." else 1
    if atom[0] == "[":
        return 2 + len(atom) // 4 if atom.isascii() and not set("^\\") & set(atom) else _WIDE + len(atom)
    return _WIDE if atom[1] in "DWSx" else 2


@lru_cache(maxsize=1024)
def reads_per_byte(pattern: str) -> int:
    """Return how much a byte of the text costs at most."""
    if _TEXTS.fullmatch(pattern):
        return _PER_BYTE
    return _PER_BYTE + _PER_STEP * pattern_steps(pattern)
