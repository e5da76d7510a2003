"""The five-step diamond a -> b, c, d -> e that floods and benchmarks submit, and what is right about its end."""

from typing import Any, Final

STEPS: Final = ("a", "b", "c", "d", "e")


def diamond(uses: str, **extra: Any) -> dict[str, Any]:
    """Return the pipeline: `a` outputs n, `b` to `d` add 1 to 3, `e` adds them up; `extra` goes into every input."""

    def step(value: str, *needs: str) -> dict[str, Any]:
        return {"uses": uses, "needs": list(needs), "with": {"value": f"${{{{ {value} }}}}", **extra}}

    return {
        "name": "diamond",
        "inputs": {"n": {"type": "integer"}},
        "steps": {
            "a": step("inputs.n"),
            "b": step("steps.a.output.value + 1", "a"),
            "c": step("steps.a.output.value + 2", "a"),
            "d": step("steps.a.output.value + 3", "a"),
            "e": step("steps.b.output.value + steps.c.output.value + steps.d.output.value", "b", "c", "d"),
        },
        "outputs": {"sum": "${{ steps.e.output.value }}"},
    }


def right_outputs(n: int) -> dict[str, int]:
    """Return what the diamond's outputs must be."""
    return {"sum": 3 * n + 6}
