"""What is fuzzed of submissions in YAML."""

from typing import Any, Final

from hypothesis import strategies as st

from tests.fuzz import language
from tests.fuzz.target import Reader, Target, known_types
from tests.fuzz.values import as_json

_YAML_SCALARS = st.sampled_from(
    (
        "a", "1", "0o17", "0x1F", "017", "1_000", "+1", "-0", ".5", "1.", "1e999", ".inf", "-.INF", ".nan", "~", "null",
        "yes", "on", "True", "2026-11-26", "12:30:45", "''", '""', '"\\x41\\u00e9\\U0001F4A5"', '"\\ud800"', '"\\0"',
        '"\\z"', "'it''s'", "|", "|+9", "|-\n  text\n  more", ">\n  a\n\n  b", "> # c", "!!str 1", "!!binary AA==",
        "!!python/object/apply:os.system [ls]", "!x y", "!<tag:yaml.org,2002:int> 1", "*a", "*b", "&a", "&a 1", "&a *a",
        "<<", "? a", "[", "]", "{", "}", ",", "- a", "a: b", "a:", ": ", "- - - 1", "%", "@", "`", "#", "---", "...",
        "9" * 300, "x" * 300, "\t", "\u2028", "\ufeff", "\x85", "\x07", "\ud800", "${{ inputs.n }}", "=",
    )
)  # fmt: skip
_KEYS = st.sampled_from(
    ("name", "steps", "uses", "with", "inputs", "outputs", "needs", "if", "a", "b", "<<", "? [x]", "? ", "1", "~",
     '"a"', "definition", "&k a", "*a", "!!str a", "a b", "é")
)  # fmt: skip


@st.composite
def _yaml_nodes(draw: st.DrawFn, depth: int = 0) -> str:
    """Draw a node that is YAML, or nearly."""
    shape = draw(st.integers(0, 5 if depth < 4 else 1))
    pad = "  " * depth
    match shape:
        case 0 | 1:
            return draw(_YAML_SCALARS)
        case 2:
            inner = [draw(_yaml_nodes(depth + 1)) for _ in range(draw(st.integers(1, 3)))]
            return "".join(f"\n{pad}- {each}" for each in inner)
        case 3 | 4:
            inner = [(draw(_KEYS), draw(_yaml_nodes(depth + 1))) for _ in range(draw(st.integers(1, 3)))]
            anchor = draw(st.sampled_from(("", "", "&a ", "!!map ", "*a ")))
            return anchor + "".join(f"\n{pad}{key}: {each}" for key, each in inner)
        case _:
            inner = [draw(_yaml_nodes(9)) for _ in range(draw(st.integers(0, 3)))]
            opening, closing = draw(st.sampled_from((("[", "]"), ("{", "}"), ("[", "}"), ("{? ", "}"))))
            return opening + ", ".join(inner) + closing


_RIGHT_YAML: Final = (
    "definition:\n  name: p\n  steps:\n    a: {uses: simulate, with: {value: %s}}\n    b:\n      uses: simulate\n"
)
_BULK = st.one_of(
    st.builds(
        lambda unit, count: unit * count,
        st.sampled_from(
            (
                "[",
                "{",
                "{a: ",
                "[[],",
                "- ",
                "? ",
                "a: &a\n",
                "*a ",
                "&a [*a, ",
                "!!str ",
                "\n",
                " ",
                "'",
                '"\\',
                "|\n",
                "# x\n",
                "a: 1\n",
                "- 1\n",
                "%TAG ! x\n",
                "--- a\n",
                "<<: *a\n",
                "!!binary ",
                "\t",
                "é",
                "\u2028",
                "- &a 1\n- *a\n",
            )
        ),
        st.sampled_from((2, 60, 70, 1_000, 5_000, 30_000)),
    ),
    st.builds(  # a billion laughs
        lambda width, depth: (
            "a0: &a0 x\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]\n" for n in range(1, depth))
        ),
        st.sampled_from((2, 10)),
        st.sampled_from((3, 12, 70)),
    ),
    st.builds(lambda count: "".join(f"k{n}: &a{n} {n}\n" for n in range(count)), st.sampled_from((100, 20_000))),
    st.builds(lambda count: "[" + "a, " * count + "b]", st.sampled_from((1_000, 100_000))),
)
_YAML_TEXTS = st.one_of(
    _yaml_nodes(),
    st.builds(lambda node: _RIGHT_YAML % node, st.one_of(_YAML_SCALARS, _yaml_nodes(9))),
    st.builds(
        lambda a, node, b: a + node + b,
        st.sampled_from(("%YAML 1.1\n---\n", "---\n", "\ufeff", "# c\n")),
        _yaml_nodes(),
        st.sampled_from(("", "\n...\n", "\n---\nb", "\n...")),
    ),
    _BULK,
    language.submissions().map(as_json),
)
_CODINGS = st.sampled_from(
    ("utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1")
)


class Yaml(Target):
    """Submissions in YAML, grown from its grammar, in bulk and broken: a submission or a problem."""

    name = "yaml"
    cases = st.tuples(
        _YAML_TEXTS,
        _CODINGS,
        st.one_of(st.just(()), st.tuples(st.integers(0, 1000), st.binary(max_size=4))),
    )

    def open(self) -> None:
        self._reader = Reader(known_types())

    def close(self) -> None:
        self._reader.close()

    def check(self, case: Any) -> None:
        text, coding, harm = case
        errors = "surrogatepass" if coding.startswith("utf") else "backslashreplace"
        raw = text.encode(coding, errors)
        if harm:
            at = len(raw) * harm[0] // 1000
            raw = raw[:at] + harm[1] + raw[at:]
        self._reader.read(raw, "application/yaml")
