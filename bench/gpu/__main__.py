"""`python -m bench.gpu`: build here, run every GPU test and GPU bench, memcheck a small run, print one table.

Needs no network and no installation: any interpreter that has torch and what the tests import will do. A step that
fails or takes too long does not keep the others from running. Bench rows are appended to <out>/<device>.jsonl.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bench import registry
from bench.__main__ import RESULTS, record
from bench.gpu import outcomes, report, steps
from bench.row import Row

MARGIN_S = 10.0  # to print in
TAIL_LINES = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 where a step or a test failed, or a step did not run; 2 where it cannot begin."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        return _refuse(
            f"no CUDA device: torch {torch.__version__} finds none, and nothing was run; "
            "run this on a machine where `nvidia-smi` lists one, with a CUDA build of torch"
        )
    if missing := steps.missing_packages():
        return _refuse(missing)
    deadline_s = time.monotonic() + 60 * options.minutes - MARGIN_S
    with tempfile.TemporaryDirectory(prefix="esper-gpu-") as name:
        folder = Path(name)
        ended = []
        for step in steps.plan(folder, registry.gpu_names(), quick=options.quick):
            print(f"{step.name} ...", file=sys.stderr, flush=True)
            ended.append(steps.run(step, folder, deadline_s))
            _show(ended[-1], folder)
        tests, watched = (list(outcomes.read(folder / f"{run}.jsonl")) for run in ("tests", "memcheck"))
        rows = list(_rows(folder))
    print(report.table(ended, tests, watched, rows))
    for row in rows if not options.quick else ():
        record(row, options.out)
    return 1 if report.failed(ended, tests + watched) else 0


def _show(step: steps.Ended, folder: Path) -> None:
    """The end of what a failed step printed; all of what says which backend runs."""
    out, err = folder / f"{step.name}.out", folder / f"{step.name}.err"
    if step.name == "backends" and out.exists():
        print(out.read_text())
    if step.result in ("failed", "stopped"):
        print(f"--- {step.name} {step.result}: {step.detail}")
        for file in (out, err):
            print("\n".join(file.read_text(errors="replace").splitlines()[-TAIL_LINES:]))
    sys.stdout.flush()


def _rows(folder: Path) -> Iterator[Row]:
    """What benches measured, also those that did not come to their end."""
    for path in sorted(folder.glob("bench-*.out")):
        for line in path.read_text().splitlines(keepends=True):
            if line.startswith("{") and line.endswith("}\n"):
                yield Row(**json.loads(line))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Run all that needs a CUDA device.")
    parser.add_argument("--minutes", type=float, default=9.0, help="the whole run ends within these (default 9)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the rows (default bench/results)")
    parser.add_argument("--quick", action="store_true", help="benches with least effort; rows are not kept")
    return parser


def _refuse(reason: str) -> int:
    print(f"bench.gpu: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
