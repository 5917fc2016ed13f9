"""`python -m bench NAME`: measure, show, and hold to the targets."""

import argparse
import datetime
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bench import registry
from bench.registry import Bench, Options, UnknownBench
from bench.row import ROOT, Row
from bench.table import print_table

RESULTS = ROOT / "bench" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 where `--check` finds a target missed; 2 for an option that cannot be had."""
    options = _parser().parse_args(arguments)
    if options.gpu and not torch.cuda.is_available():
        return _refuse("--gpu: this torch finds no CUDA device")
    if options.quick and options.record:
        return _refuse("--record with --quick: numbers of least effort are not kept")
    try:
        benches = [registry.load(name) for name in options.names] or _default(options.gpu)
    except UnknownBench as error:
        return _refuse(str(error))
    if unfit := [bench.name for bench in benches if options.gpu and not bench.gpu]:
        return _refuse(f"--gpu: {', '.join(unfit)} measures the CPU only")
    asked = Options(options.quick, options.gpu, tuple(options.task or ()), options.seeds, options.services)
    rows: list[Row] = []
    for bench in benches:
        print(f"{bench.name}: {bench.about}", file=sys.stderr, flush=True)
        for row in bench.rows(asked):
            rows.append(row)
            if options.json:
                print(row.json(), flush=True)
            if options.record:
                record(row)
    if not options.json:
        print_table(rows)
    missed = [row for row in rows if row.met is False]
    for row in missed if options.check else ():
        shown = f"{row.bench} {row.case} {row.metric} is {row.value:.4g} {row.unit}"
        print(f"missed beyond noise: {shown}, target {row.target:g}", file=sys.stderr)
    return 1 if options.check and missed else 0


def record(row: Row, folder: Path = RESULTS) -> Path:
    """Append a row, with the date, to its device's file. Returns the file."""
    name = re.sub(r"[^a-z0-9]+", "-", row.device.lower()).strip("-")
    path = folder / f"{name}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with path.open("a") as file:
        file.write(json.dumps({"date": date, **asdict(row)}) + "\n")
    return path


def _default(gpu: bool) -> list[Bench]:
    """Without a name: all that run here but the long ones, which are named on stderr."""
    if gpu:
        return [registry.load(name) for name in registry.gpu_names()]
    fitting = [registry.load(name) for name in registry.names()]
    for bench in fitting:
        if bench.long:
            print(f"{bench.name} takes long and is left out; run: python -m bench {bench.name}", file=sys.stderr)
    return [bench for bench in fitting if not bench.long]


def _parser() -> argparse.ArgumentParser:
    known = ", ".join(registry.names())
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Esper against its targets.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{known}; all but the long ones if absent")
    parser.add_argument("--json", action="store_true", help="one row a line instead of a table")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed beyond A/A noise")
    parser.add_argument("--quick", action="store_true", help="least effort; shows that it runs")
    parser.add_argument("--gpu", action="store_true", help="on the CUDA device")
    parser.add_argument("--record", action="store_true", help="append to bench/results/<device>.jsonl")
    growth = parser.add_argument_group("growth and verdict")
    growth.add_argument("--task", action="append", choices=("digits", "text", "tabular"), help="may be repeated")
    growth.add_argument("--seeds", type=_positive, default=5, help="random seeds per task (default 5)")
    growth.add_argument("--services", action="store_true", help="growth: under the real services, as `esper demo` runs")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _refuse(reason: str) -> int:
    print(f"bench: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
