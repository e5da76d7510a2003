"""The text of bytes that a stranger labels: only by charsets that are charsets, and never by an error."""

import codecs
import re
from typing import Final

# What browsers read (encoding.spec.whatwg.org), by Python's names. The rest of Python's codecs are no charsets of text
# (`hex`, `rot13`, `idna`), or are ways to hide it (`utf-7`, `punycode`, `unicode_escape`).
_KNOWN: Final = frozenset(
    {
        "ascii", "utf-8", "utf-16", "utf-16-le", "utf-16-be", "koi8-r", "koi8-u", "mac-roman", "cp866", "cp874",
        "shift_jis", "cp932", "euc_jp", "iso2022_jp", "gb2312", "gbk", "gb18030", "big5", "big5hkscs", "euc_kr",
        "cp949",
    }
    | {f"iso8859-{part}" for part in range(1, 17)}
    | {f"cp{page}" for page in range(1250, 1259)}
)  # fmt: skip
_LABEL: Final = re.compile(r"[A-Za-z0-9_.:-]{1,40}")
_MARKS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def decoded(raw: bytes, charset: str | None) -> str:
    """Return the text of bytes by their byte order mark, or else their charset if it is known, or else as UTF-8.

    What cannot be decoded has marks (U+FFFD) in its place, so that any text can be written again.
    """
    for mark, codec in _MARKS:
        if raw.startswith(mark):
            return raw[len(mark) :].decode(codec, errors="replace")
    return raw.decode(_codec_of(charset), errors="replace")


def _codec_of(charset: str | None) -> str:
    if charset is None or not _LABEL.fullmatch(charset):
        return "utf-8"
    try:
        name = codecs.lookup(charset).name
    except LookupError:
        return "utf-8"
    return name if name in _KNOWN else "utf-8"
