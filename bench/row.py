"""One measured number: what it is, what it was held to, and where it was measured."""

import functools
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Target:
    """A limit, inclusive: an upper one, or a lower one with `at_least`."""

    limit: float
    at_least: bool = False

    def met(self, value: float, aa_low: float | None, aa_high: float | None) -> bool:
        """Whether `value` keeps the limit, allowing for the noise that the A/A control showed."""
        if self.at_least:
            return value >= self.limit * min(1.0, 1.0 if aa_low is None else aa_low)
        return value <= self.limit * max(1.0, 1.0 if aa_high is None else aa_high)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of `--json`. `aa_low` to `aa_high`: 95 % interval of the baseline's ratio to itself in the same run."""

    bench: str
    case: str
    metric: str
    value: float
    unit: str
    baseline: str  # what a ratio is to, with its own median; "": the value stands for itself
    aa_low: float | None
    aa_high: float | None
    target: float | None
    met: bool | None  # None: there is no target
    device: str
    versions: dict[str, str]
    commit: str

    def json(self) -> str:
        return json.dumps(asdict(self))


def make_row(
    bench: str,
    case: str,
    metric: str,
    value: float,
    unit: str,
    *,
    baseline: str = "",
    aa: tuple[float, float] | None = None,
    target: Target | None = None,
    device: str = "cpu",
) -> Row:
    """A row measured here and now."""
    aa_low, aa_high = aa if aa is not None else (None, None)
    return Row(
        bench=bench,
        case=case,
        metric=metric,
        value=float(value),
        unit=unit,
        baseline=baseline,
        aa_low=aa_low,
        aa_high=aa_high,
        target=target.limit if target else None,
        met=target.met(value, aa_low, aa_high) if target else None,
        device=device_name(device),
        versions=versions(device),
        commit=commit(),
    )


@functools.cache
def device_name(device: str = "cpu") -> str:
    """The processor or GPU that was measured, with its number of cores."""
    if device == "cuda":
        return str(torch.cuda.get_device_name())
    return f"{_processor()} x{os.cpu_count()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


@functools.cache
def versions(device: str = "cpu") -> dict[str, str]:
    """Of everything a figure depends on."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "esper": _version("esper")}
    return found | {"triton": _version("triton")} if device == "cuda" else found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@functools.cache
def commit() -> str:
    """The commit that was measured; "+" after it: with changes that are not committed; "": not a checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return f"{head}+" if _git("status", "--porcelain", "-uno", "--", ".", ":!bench/results") else head
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
