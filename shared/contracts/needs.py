"""The graph of `needs`: its cycles, and what a step has before it. Nothing here recurses or is quadratic in memory."""

from collections.abc import Iterator, Mapping, Sequence

Needs = Mapping[str, Sequence[str]]  # step to the steps it needs, all of them known


def order(needs: Needs) -> list[str]:
    """Return the steps with those they need before them; steps on or behind a cycle are left out (Kahn, 1962)."""
    missing = {step: len(set(of_step)) for step, of_step in needs.items()}
    dependents: dict[str, list[str]] = {step: [] for step in needs}
    for step, of_step in needs.items():
        for need in dict.fromkeys(of_step):
            dependents[need].append(step)
    done = [step for step, count in missing.items() if not count]
    for step in done:  # grows while it is read
        for dependent in dependents[step]:
            missing[dependent] -= 1
            if not missing[dependent]:
                done.append(dependent)
    return done


def cycles(needs: Needs) -> list[list[str]]:
    """Return cycles, as `[a, b, a]`, so many that without them no step is on one; none if the graph has none."""
    left = needs.keys() - set(order(needs))
    found: list[list[str]] = []
    seen: set[str] = set()
    for start in needs:
        walk: dict[str, int] = {}  # step to its place in the walk
        step: str | None = start if start in left and start not in seen else None
        while step is not None and step not in seen:
            seen.add(step)
            walk[step] = len(walk)
            step = next((need for need in needs[step] if need in left), None)
        if step in walk:
            path = list(walk)[walk[step] :]
            found.append([*path, path[0]])
    return found


class Ancestors:
    """Answers whether a step needs another, directly or through others. One bit per pair, made when first asked."""

    def __init__(self, needs: Needs) -> None:
        self._bit = {step: 1 << at for at, step in enumerate(needs)}
        self._before: dict[str, int] = {}
        for step in order(needs):
            bits = 0
            for need in needs[step]:
                bits |= self._bit[need] | self._before[need]
            self._before[step] = bits

    def has(self, step: str, ancestor: str) -> bool:
        """Return whether `ancestor` comes before `step`. Steps on a cycle are answered yes: the cycle is the error."""
        before = self._before.get(step)
        return before is None or bool(before & self._bit[ancestor])

    def of(self, step: str) -> Iterator[str]:
        """Return the steps that come before `step`."""
        before = self._before.get(step, 0)
        return (name for name, bit in self._bit.items() if before & bit)
