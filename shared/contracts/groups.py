"""The consumer groups: who reads a topic together, by the topics' prefix."""


def orchestrators(prefix: str) -> str:
    """Those that own the partitions of the inbox; its committed offsets only tell how far they are."""
    return f"{prefix}.orchestrator"


def history(prefix: str) -> str:
    """Those that keep Redis up with the run events."""
    return f"{prefix}.history"


def record(prefix: str) -> str:
    """Those that keep the record in SQL up with the run events."""
    return f"{prefix}.record"


def workers(prefix: str, uses: str) -> str:
    """Those that share the commands of a step type."""
    return f"{prefix}.steps.{uses}"
