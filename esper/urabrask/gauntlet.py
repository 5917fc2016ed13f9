"""Run every check and measurement on one artifact. Meant for a process that is shut off.

It stops at the first check that fails, and tells what it does as it goes, so that its
listener knows how far it came whatever becomes of it.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

import torch

from esper.artifact.body import read_body
from esper.artifact.bundle import check_files, check_id, from_bytes
from esper.artifact.contents import Contents, open_contents
from esper.artifact.script import CompiledForm
from esper.errors import EsperError
from esper.urabrask import calling, checks, stability
from esper.urabrask.checks import Check, Finding
from esper.urabrask.confine import Send
from esper.urabrask.measure import Drift, Memory, Speed, check_drift, check_latency, check_memory
from esper.urabrask.static import check_static
from esper.urabrask.subject import Subject, prepare

# Frames: the name of a check as it begins; what it found; the figures, when all have passed.
BEGINS, FOUND, FIGURES = b"b", b"f", b"m"
# What each check of stages 1 and 2 is done by; the order is that of esper.urabrask.stages.
CHECKS: dict[str, Check] = {
    "shape": checks.check_shape,
    "dtype": checks.check_dtype,
    "gradient": checks.check_gradient,
    "layout": calling.check_layout,
    "determinism": checks.check_determinism,
    "purity": checks.check_purity,
    "modes": calling.check_modes,
    "identity": checks.check_identity,
    "causality": checks.check_causality,
    **stability.CHECKS,
}

Load = Callable[[Contents], CompiledForm]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured. `gradient_reading`: the share of its tolerance that the gradient check used."""

    speed: Speed
    memory: Memory
    drift: Drift
    gradient_reading: float
    input_shape: tuple[int, ...]


def own_form(contents: Contents) -> CompiledForm:
    """The artifact's own compiled form."""
    return contents.form


def run(artifact: bytes, send: Send, runs: int, load: Load = own_form) -> None:
    """Everything there is to find out about `artifact`, `runs` timed calls included.

    `load` says which form is evaluated; nothing in a request reaches it.
    """
    torch.set_num_threads(1)
    course = _Course(send)
    subject = course.take("form", partial(_open, artifact, load))
    if subject is None:
        return
    if course.take("static", partial(_alone, _static, subject)) is None:
        return
    for name, check in CHECKS.items():
        if course.take(name, partial(_alone, check, subject)) is None:
            return
    drift = course.take("drift", partial(check_drift, subject))
    if drift is None:
        return
    speed = course.take("latency", partial(check_latency, subject, runs))
    if speed is None:
        return
    memory = course.take("memory", partial(check_memory, subject))
    if memory is None:
        return
    figures = Figures(speed, memory, drift, course.readings["gradient"], tuple(subject.measured().shape))
    send(FIGURES, json.dumps(asdict(figures)).encode())


class _Course:
    """One run: says what begins and what was found."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.readings: dict[str, float] = {}

    def take(self, name: str, check: Callable[[], tuple[Finding, T]]) -> T | None:
        """What `check` made, or None where it failed."""
        self._send(BEGINS, name.encode())
        value: T | None = None
        began = time.perf_counter_ns()
        try:
            finding, value = check()
        except Exception as error:  # whatever a candidate raises is what was found
            finding = Finding(False, _fault(error))
            if _out_of_memory(error):
                name, finding = "memory", Finding(False, f"needed more than it may have, in {name}: {_fault(error)}")
        self.readings[name] = finding.reading
        elapsed_ms = (time.perf_counter_ns() - began) / 1e6
        said = {"name": name, "passed": finding.passed, "detail": finding.detail, "elapsed_ms": elapsed_ms}
        self._send(FOUND, json.dumps(said).encode())
        return value if finding.passed else None


def open_subject(artifact: bytes, load: Load = own_form) -> Subject:
    """What is in an artifact's bytes, ready to be tried. Raises what the artifact's own checks raise."""
    bundle = from_bytes(artifact)
    check_id(bundle.manifest)
    body = read_body(bundle.manifest.body)
    check_files(bundle.artifact_id, body, bundle.files)
    contents = open_contents(body, bundle.files)
    return prepare(contents, load(contents))


def _open(artifact: bytes, load: Load) -> tuple[Finding, Subject]:
    subject = open_subject(artifact, load)
    body = subject.contents.body
    return Finding(True, f"{len(body.files)} files fit; takes {len(body.parameters)} parameters"), subject


def _static(subject: Subject) -> Finding:
    return check_static(subject.contents)


def _alone(check: Check, subject: Subject) -> tuple[Finding, Finding]:
    """A check that makes nothing but its finding."""
    finding = check(subject)
    return finding, finding


def _fault(error: Exception) -> str:
    """One line. TorchScript puts its cause last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, EsperError):
        return " ".join(lines)[:500]
    return f"raised {type(error).__name__}: {lines[-1][:300] if lines else 'no message'}"


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)
