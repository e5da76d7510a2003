"""Evaluates random expressions that build, nest and repeat large values, in a process with little memory.

Run as `python -m tests.unit.contracts.poison SEED COUNT`: prints how they ended as JSON. An expression that gets
through ends the process; it is the last one on standard error.
"""

import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from anabranch.shared.contracts.limits import MIB
from anabranch.shared.contracts.programs import ExpressionError, InvalidExpressionError, compile_expression

MEMORY = 160 * MIB  # 64 MiB that an evaluation may take, and the address space that its arena reserves

CONTEXT: dict[str, Any] = {
    "inputs": {
        "text": "x" * 60_000,
        "umlauts": "ü" * 20_000,
        "short": "y" * 5_000,
        "n": 9_999,
        "numbers": [1] * 30_000,
        "words": ["ab"] * 9_000,
        "pages": ["z" * 20_000] * 5,
        "rows": [{"a": "q" * 30, "b": [1, 2]}] * 1_500,
    },
    "steps": {"a": {"output": {"text": "x\n" * 400_000, "map": {f"k{n}": n for n in range(10_000)}}}},
}
TEXTS = ("inputs.text", "inputs.umlauts", "inputs.short", "steps.a.output.text", "'x'", "'abc'")
LISTS = ("inputs.numbers", "inputs.words", "inputs.rows", "inputs.pages", "range(inputs.n)", "range(200)", "[1]")
TEXT_SHAPES = (
    "({t} + {t})",
    "({t} + {t} + {t})",
    "{t}.replace({t}, {t})",
    "{t}.replace('x', {t})",
    "{t}.replace('', {t})",
    "{w}.join({t})",
    "'%s%s'.format([{t}, {a}])",
    "(size({t}) > 3 ? {t} : {t})",
    "cel.bind({v}, {t}, {T})",
    "{t}.upperAscii()",
    "{t}.substring(1)",
    "{t}.trim()",
    "{t}.reverse()",
    "strings.quote({t})",
    "string({t})",
    "{w}[0]",
)
LIST_SHAPES = (
    "({l} + {l})",
    "[{a}, {a}, {a}]",
    "{l}.map({v}, {A})",
    "{l}.map({v}, {T})",
    "{l}.filter({v}, {v} != {A})",
    "{t}.split('x')",
    "{t}.split('')",
    "cel.bind({v}, {l}, {L})",
    "(inputs.n > 3 ? {l} : {l})",
)
TOPS = ("{t}", "{l}", "size({t})", "size({l})", "{l}.all({v}, {A} != {A})", "{l}.exists({v}, {T}.matches('(a|b)*c'))")


class Writer:
    """Writes random expressions: `{t}` is a text, `{w}` a list of texts, `{l}` a list, `{a}` any.

    `{v}` is a new name, which what has a capital letter may use.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def expression(self) -> str:
        return self._fill(self._random.choice(TOPS), self._random.randint(1, 5), ())

    def _fill(self, shape: str, depth: int, names: tuple[str, ...]) -> str:
        name = f"v{len(names)}"
        parts: list[str] = []
        rest = shape
        while "{" in rest:
            before, _, rest = rest.partition("{")
            kind, _, rest = rest.partition("}")
            parts += [before, name if kind == "v" else self._one(kind, depth - 1, names, name)]
        return "".join([*parts, rest])

    def _one(self, kind: str, depth: int, names: tuple[str, ...], name: str) -> str:
        if kind.isupper():
            names = (*names, name)
        match kind.lower():
            case "t":
                return self._choose((*TEXTS, *names), TEXT_SHAPES, depth, names)
            case "w":
                return self._choose(("inputs.words", "inputs.pages"), ("{t}.split('x')", "[{t}, {t}]"), depth, names)
            case "l":
                return self._choose((*LISTS, *names), LIST_SHAPES, depth, names)
            case _:
                return self._choose(
                    (*TEXTS, *LISTS, *names, "steps.a.output.map"), (*TEXT_SHAPES, *LIST_SHAPES), depth, names
                )

    def _choose(self, leaves: tuple[str, ...], shapes: tuple[str, ...], depth: int, names: tuple[str, ...]) -> str:
        if depth <= 0 or self._random.random() < 0.2:
            return self._random.choice(leaves)
        return self._fill(self._random.choice(shapes), depth, names)


def ending(source: str) -> str:
    """Return how an expression ends; a `MemoryError`, or the engine's end, ends the process."""
    try:
        compile_expression(source).evaluate(CONTEXT)
    except InvalidExpressionError:
        return "invalid"
    except ExpressionError as error:
        return "refused" if "costs more than" in str(error) else "error"
    return "done"


def compiled(source: str) -> None:
    """Compile it, so that its evaluation is timed alone."""
    try:
        compile_expression(source)
    except InvalidExpressionError:
        return


def allow(more: int) -> None:
    """Let this process take so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    writer = Writer(int(sys.argv[1]))
    sources = [writer.expression() for _ in range(int(sys.argv[2]))]
    compile_expression("1 + 1").evaluate({})
    allow(MEMORY)
    endings: Counter[str] = Counter()
    slowest, which = 0.0, ""
    for source in sources:
        print(source, file=sys.stderr, flush=True)
        compiled(source)
        began = time.process_time()
        endings[ending(source)] += 1
        slowest, which = max((slowest, which), (time.process_time() - began, source))
    print(f"slowest: {which}", file=sys.stderr)
    print(json.dumps({**endings, "slowest_ms": round(1000 * slowest)}))


if __name__ == "__main__":
    main()
