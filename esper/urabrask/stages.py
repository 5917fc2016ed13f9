"""The stages of the gauntlet: what is tried in which order, and which of it a kernel must pass to be promoted."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """`checks` in their order. `gates`: a failure here rejects the kernel."""

    number: int
    name: str
    checks: tuple[str, ...]
    gates: bool = True


# Made by the evaluator itself, before a worker sees the kernel.
SIGNATURE = "signature"
STAGES = (
    Stage(0, "gatekeeper", (SIGNATURE, "form", "static")),
    Stage(
        1,
        "correctness",
        ("shape", "dtype", "gradient", "layout", "determinism", "purity", "modes", "identity", "causality"),
    ),
    Stage(2, "stability", ("finite", "nan", "depth", "training")),
    Stage(3, "benchmark", ("drift", "latency", "memory")),
    Stage(4, "usefulness", (), gates=False),
    Stage(5, "tags", (), gates=False),
)
# All checks a kernel must pass, in their order; and those of them that run in the isolated process.
GATES = tuple(check for stage in STAGES if stage.gates for check in stage.checks)
NAMES = GATES[1:]
STAGE_OF = {check: stage for stage in STAGES for check in stage.checks}
