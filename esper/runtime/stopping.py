"""A run that is stopped before its last step: who asks for it, and what is said of it."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from esper.nissa.codec import stopped_at
from esper.runtime.spec import called
from esper.tolaria.checkpoint import CheckpointStore

STOPPED = 130  # exit status of a process whose run was stopped, as of one that Ctrl-C ended


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM and Ctrl-C ask a run to stop, which what is given tells; a second one raises KeyboardInterrupt.

    In the main thread only.
    """
    asked = [False]

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked[0]:
            raise KeyboardInterrupt
        asked[0] = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: asked[0]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def how_to_go_on(run_id: str, directory: Path, step: int, total_steps: int) -> str:
    """What a person who stopped a run is told. `step`: at which it stopped."""
    words = f"run {run_id} {stopped_at(step, total_steps)}"
    if CheckpointStore(directory / "checkpoints").folders():
        return f"{words}; go on: esper train --resume {called(directory)}"
    return f"{words}, and no checkpoint could be written, so that it cannot go on; {directory}/events.jsonl says why"
