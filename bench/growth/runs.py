"""One `esper demo` run, and what its files say of it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.row import ROOT

GROWN, NEVER_GROWN, STATIC_FINAL = "grown", "never-grown", "static-final"
ARMS = (GROWN, NEVER_GROWN, STATIC_FINAL)
Event = Mapping[str, Any]  # a line of events.jsonl


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run beside its controls. Losses are of the test slice, by arm."""

    loss: Mapping[str, float]
    parameters: Mapping[str, int]
    flops: Mapping[str, float]  # nursery and twin counted
    verdict_s: tuple[float, ...]  # from a seed's germination to its first verdict
    fossilised: int
    culled: int
    stalled_steps: int

    @property
    def gain(self) -> float:
        """Of the grown model over the one never grown, as a share of the latter's loss."""
        return 1 - self.loss[GROWN] / self.loss[NEVER_GROWN]

    @property
    def compute_ratio(self) -> float:
        return self.flops[GROWN] / self.flops[NEVER_GROWN]


def demo(task: str, seed: int, folder: Path, *, services: bool, steps: int = 0) -> Outcome:
    """Run the demo in `folder`. Raises RuntimeError with the end of its output where it fails."""
    run_id = f"{task}-{seed}"
    command = [sys.executable, "-m", "esper", "demo", "--task", task, "--seed", str(seed), "--no-view"]
    command += ["--run-id", run_id, "--home", f"home-{run_id}"]
    command += [] if services else ["--no-services"]
    command += ["--steps", str(steps)] if steps else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    lines = (folder / "runs" / run_id / "events.jsonl").read_text().splitlines()
    return outcome_of(json.loads(line) for line in lines)


def outcome_of(events: Iterable[Event]) -> Outcome:
    """A run's outcome from its events, in order. Raises ValueError where the run has no summary or lacks an arm."""
    germinated: dict[str, datetime] = {}
    verdicts, summary = [], None
    for event in events:
        if event["kind"] == "transition" and event["to"] == "GERMINATED":
            germinated[event["seed"]] = datetime.fromisoformat(event["time"])
        elif event["kind"] == "decision" and "verdict" in event:
            began = germinated.pop(event["verdict"]["seed"], None)  # a verdict may be repeated
            if began is not None:
                verdicts.append((datetime.fromisoformat(event["time"]) - began).total_seconds())
        elif event["kind"] == "summary":
            summary = event
    if summary is None:
        raise ValueError("the run has no summary: it did not end well")
    arms = {arm["arm"]: arm for arm in summary["arms"]}
    if missing := [arm for arm in ARMS if arm not in arms]:
        raise ValueError(f"the run's summary lacks {', '.join(missing)}: a control run failed")
    return Outcome(
        loss={arm: arms[arm]["test_loss"] for arm in ARMS},
        parameters={arm: arms[arm]["parameters"] for arm in ARMS},
        flops={arm: arms[arm]["total_flops"] for arm in ARMS},
        verdict_s=tuple(verdicts),
        fossilised=summary["fossilised"],
        culled=summary["culled"],
        stalled_steps=summary["stalled_steps"],
    )
