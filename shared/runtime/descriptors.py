"""How many connections and files a process may have open."""

import resource


def allow_descriptors(wanted: int) -> int:
    """Raise the soft limit as far as is wanted and the hard one lets it; return what it is then.

    A shell gives 1,024 to a process that may have many more: too few for a listener, which would not accept then.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return max(soft, wanted)
    raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    except (OSError, ValueError):  # macOS has a further limit, which it does not tell here
        return soft
    return raised
