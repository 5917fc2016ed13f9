"""How many jobs a runtime does at a time where nobody says."""

import os

FEWEST, MOST = 2, 8  # one place is kept for short jobs; a worker takes memory, whatever the cores


def usual_workers() -> int:
    """The cores this process may use, FEWEST to MOST."""
    return max(FEWEST, min(MOST, usable_cores()))


def usable_cores() -> int:
    """Cores that the system lets this process run on; where it does not say, all there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
