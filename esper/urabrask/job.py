"""What runs inside an evaluation worker: one artifact in, findings out.

The worker itself touches nothing of the candidate: it starts a child that shuts itself
off and runs the gauntlet, listens, and writes down how far the child came.
"""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from esper.errors import Corrupt, Unavailable
from esper.urabrask import codec
from esper.urabrask.codec import Findings
from esper.urabrask.confine import Outcome, Send, confined
from esper.urabrask.gauntlet import BEGINS, FIGURES, FOUND, Load, open_subject, own_form, run
from esper.urabrask.jail import Isolation
from esper.urabrask.judge import Checked
from esper.urabrask.measure import warm_profiler
from esper.urabrask.probe import probe
from esper.urabrask.stages import NAMES
from esper.urabrask.usefulness import Usefulness, probe_usefulness

KIND, ISOLATION_KIND, USEFULNESS_KIND = "evaluate", "isolation", "usefulness"
_ISOLATED, _USEFULNESS = b"i", b"u"
Emit = Callable[[bytes], None]


def evaluate_job(payload: bytes, _emit: Emit = lambda _part: None) -> bytes:
    """Evaluate the artifact in `payload`. Whatever becomes of the candidate is an answer, and so is no isolation."""
    return evaluate(payload, own_form)


def usefulness_job(payload: bytes, _emit: Emit = lambda _part: None) -> bytes:
    """The usefulness probe of the artifact in `payload`; one that does not end well says why."""
    order = codec.read_order(payload)

    def work(artifact: bytes, send: Send, _isolation: Isolation) -> None:
        torch.set_num_threads(1)
        send(_USEFULNESS, json.dumps(asdict(probe_usefulness(open_subject(artifact)))).encode())

    try:
        outcome = confined(work, order.artifact, order.limits, order.timeout_s)
    except Unavailable as error:
        return codec.write_unavailable(error)
    told = [body for kind, body in outcome.frames if kind == _USEFULNESS]
    if outcome.ending or len(told) != 1:
        return codec.write_usefulness(_no_probe(f"the process {outcome.ending or 'said nothing'}"))
    try:
        return codec.write_usefulness(codec.parse_usefulness(told[0]))
    except Corrupt as error:
        return codec.write_usefulness(_no_probe(str(error)))


def _no_probe(reason: str) -> Usefulness:
    return Usefulness(0, 0.0, 0.0, 0.0, 0.0, reason)


def isolation_job(_payload: bytes, _emit: Emit = lambda _part: None) -> bytes:
    """What isolation can be had in a worker like this one."""
    try:
        return codec.write_isolation(probe())
    except Unavailable as error:
        return codec.write_unavailable(error)


def evaluate(payload: bytes, load: Load) -> bytes:
    """`evaluate_job` with a say in which form is evaluated, for tests; no request reaches it."""
    order = codec.read_order(payload)

    def work(artifact: bytes, send: Send, isolation: Isolation) -> None:
        send(_ISOLATED, isolation.how.encode())
        run(artifact, send, order.runs, load)

    try:
        outcome = confined(work, order.artifact, order.limits, order.timeout_s, warm_profiler, order.jailed)
    except Unavailable as error:
        return codec.write_unavailable(error)
    return codec.write_findings(findings(outcome))


def findings(outcome: Outcome) -> Findings:
    """What a child's frames and its ending say together; a check it began and did not end is the one that failed."""
    checks, figures, isolation, pending, ending = list[Checked](), None, "", NAMES[0], outcome.ending
    try:
        for kind, body in outcome.frames:
            if kind == _ISOLATED:
                isolation = body.decode()
            elif kind == BEGINS:
                pending = body.decode()[:64]
            elif kind == FOUND:
                checks.append(codec.read_finding(body))
            elif kind == FIGURES:
                figures = codec.read_figures(body)
    except (Corrupt, UnicodeDecodeError) as error:
        ending = f"said something that is no answer: {error}"
    if ending:
        checks = [check for check in checks if check.name != pending]
        checks.append(Checked(pending, False, f"the process {ending}"))
        figures = None
    return Findings(tuple(checks), figures, isolation, machine(isolation))


def machine(isolation: str) -> Mapping[str, str]:
    """What the findings are true of."""
    return {
        "cpu": _processor(),
        "system": platform.platform(),
        "torch": str(torch.__version__),
        "threads": "1",
        "isolation": isolation or "none",
    }


def _processor() -> str:
    """The model's name where Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
