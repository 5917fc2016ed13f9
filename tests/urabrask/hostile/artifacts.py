"""Kernels that are wrong on purpose: real artifacts whose TorchScript or files were changed, and forms in Python.

The forms are put into the evaluating process by tests; a request can name none of them.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from esper.artifact.attest import BUILT
from esper.artifact.body import MODULE, read_body
from esper.artifact.bundle import Artifact, bundle, sign
from esper.artifact.contents import Contents
from esper.artifact.script import CompiledForm, save_script
from esper.blueprint.emit import emit_function, torchscript
from esper.blueprint.interface import Interface, Kind
from esper.karn.templates import TEMPLATES
from esper.urabrask import job
from tests.artifact.samples import FORGE, built

WHERE = Interface(Kind.TOKENS, 8, causal=True)
TITLE = "low_rank"


def forged(*, module: bytes | None = None, **files: bytes) -> Artifact:
    """A genuine kernel with some files changed, signed by the forge all the same."""
    artifact = built(TITLE, WHERE)
    changed = {**artifact.files, **files, **({MODULE: module} if module is not None else {})}
    body = replace(read_body(artifact.manifest.body), files={})
    return sign(bundle(body, changed), FORGE, BUILT, {})


def rewritten(*lines: str) -> Artifact:
    """The genuine source with `lines` before its last one, `return up`; they may change `up` and see `x`."""
    source = torchscript(emit_function(TEMPLATES[TITLE].graph, WHERE, "forward"))
    body, last = source.rstrip().rsplit("\n", 1)
    assert last == "    return up"
    return forged(module=save_script("\n".join([body, *(f"    {line}" for line in lines), last]) + "\n"))


NAN = "float('nan')"
# name -> (lines, the check that must name it)
SCRIPTS: dict[str, tuple[tuple[str, ...], str]] = {
    "other shape": (("up = up.flatten(1)",), "shape"),
    "right shape, but for one batch": (("if up.size(0) == 5:", "    up = up.flatten(1)"), ""),
    "other type": (("up = up.double()",), "dtype"),
    "wrong for odd batches": (("if up.size(0) % 2 == 1:", "    up = up * 1.5"), "gradient"),
    "wrong by less than float32 shows": (("up = up * 1.000001",), "gradient"),
    "wrong for batch 1": (("if up.size(0) == 1:", "    up = up * 1.01"), "gradient"),
    "wrong at the second call": (("up = up * (1.0 + 0.01 * (x.size(1) % 2))",), "gradient"),
    "right forward, wrong backward": (("up = up.detach() + 0.5 * (up - up.detach())",), "gradient"),
    "no gradient": (("up = up.detach()",), "gradient"),
    "no gradient for one parameter": (
        ("up = torch.linear(torch.linear(x, p_down_weight.detach()), p_up_weight)",),
        "gradient",
    ),
    "wrong in float32 only": (("if up.element_size() == 4:", "    up = up * 1.01"), "gradient"),
    "random": (("if up.element_size() == 4:", "    up = up * (1.0 + 1e-5 * torch.rand_like(up))"), "determinism"),
    "random to no effect": (("up = up + 0.0 * torch.rand_like(up)",), "determinism"),
    "NaN for large inputs": (("if float(torch.max(torch.abs(x))) > 100.0:", f"    up = up * {NAN}"), "finite"),
    "NaN for zero inputs": (("if float(torch.max(torch.abs(x))) == 0.0:", f"    up = up * {NAN}"), "finite"),
    "infinite for tiny inputs": (
        ("if float(torch.max(torch.abs(x))) < 1e-20:", "    up = up / 0.0 + 1.0 / 0.0"),
        "finite",
    ),
    "writes its input": (("if not x.requires_grad:", "    x.add_(1.0)"), "purity"),
    "writes a parameter": (("if not x.requires_grad:", "    p_up_weight.mul_(1.001)"), "purity"),
    "right in training, wrong without gradients": (("if not x.requires_grad:", "    up = up * 1.01"), "modes"),
    "right without gradients, wrong in training": (("if x.requires_grad:", "    up = up * 1.01"), "gradient"),
    "wrong where the input is frozen": (
        ("if p_up_weight.requires_grad and not x.requires_grad:", "    up = up * 1.01"),
        "modes",
    ),
    "wrong for permuted inputs": (("if not x.is_contiguous():", "    up = up * 1.01"), "layout"),
    "hides NaN": (("up = torch.nan_to_num(up)",), "nan"),
    "spreads NaN": (("up = up + 0.0 * x.sum()",), "nan"),
    "larger the deeper it stands": (
        ("if x.size(0) == 3 and float(torch.max(torch.abs(x))) > 7.5:", "    up = up * 1.5"),
        "depth",
    ),
    "NaN once it has begun to learn": (
        (
            "if 0.0 < float(torch.max(torch.abs(p_up_weight))) and float(torch.max(torch.abs(p_up_weight))) < 0.05:",
            f"    up = up * {NAN}",
        ),
        "training",
    ),
    "wrong for large batches": (("if x.size(0) >= 16:", "    up = up * 1.01"), "drift"),
    "allocates without end": (("waste = torch.zeros([68719476736])", "up = up + 0.0 * waste[0]"), "memory"),
    "allocates more than it needs": (("waste = x.new_empty([4000000])", "up = up + waste[0:0].sum()"), "memory"),
    "slow": (("i = 0", "while i < 400:", "    up = up + 0.0", "    i = i + 1"), "latency"),
    "never ends": (("i = 0", "while i >= 0:", "    i = (i + 1) % 7"), "shape"),
    "raises": (("assert x.size(0) < 0, 'no'",), "shape"),
    "raises for batch 8": (("assert x.size(0) < 8, 'not eight'",), "shape"),
}


class Reuser:
    """Right values in a buffer that the next call writes over."""

    def __init__(self, form: CompiledForm) -> None:
        self.form = form
        self.buffers: dict[torch.dtype, Tensor] = {}

    def __call__(self, h: Tensor, *parameters: Tensor) -> Tensor:
        out = self.form(h, *parameters)
        buffer = self.buffers.setdefault(out.dtype, torch.empty(1 << 16, dtype=out.dtype))
        return buffer.detach()[: out.numel()].view_as(out).copy_(out)


def _returns_input(contents: Contents) -> CompiledForm:

    def form(h: Tensor, *parameters: Tensor) -> Tensor:
        out = contents.form(h, *parameters)
        return out if h.requires_grad else h.copy_(out)

    return form


def _changes_settings(contents: Contents) -> CompiledForm:
    def form(h: Tensor, *parameters: Tensor) -> Tensor:
        out = contents.form(h, *parameters)
        if not h.requires_grad and not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
        return out

    return form


def _looks_ahead(contents: Contents) -> CompiledForm:
    """Tells later positions by less than the gradient check can see."""

    def form(h: Tensor, *parameters: Tensor) -> Tensor:
        out = contents.form(h, *parameters)
        return out * (1.0 + 1e-5 * h.mean(1, keepdim=True)) if h.dtype == torch.float32 else out

    return form


def _dials_out(contents: Contents) -> CompiledForm:
    def form(h: Tensor, *parameters: Tensor) -> Tensor:
        with socket.create_connection(("127.0.0.1", PORT), 2):
            return contents.form(h, *parameters)

    return form


def _runs_a_program(contents: Contents) -> CompiledForm:
    def form(h: Tensor, *parameters: Tensor) -> Tensor:
        os.posix_spawn("/bin/true", ["/bin/true"], {})
        return contents.form(h, *parameters)

    return form


def _forks(contents: Contents) -> CompiledForm:
    def form(h: Tensor, *parameters: Tensor) -> Tensor:
        if os.fork() == 0:
            os._exit(0)
        return contents.form(h, *parameters)

    return form


def _writes_a_file(contents: Contents) -> CompiledForm:
    def form(h: Tensor, *parameters: Tensor) -> Tensor:
        Path("leak").write_bytes(b"x" * 100)
        return contents.form(h, *parameters)

    return form


def _crashes(contents: Contents) -> CompiledForm:
    def form(h: Tensor, *parameters: Tensor) -> Tensor:
        os.kill(os.getpid(), 11)
        return contents.form(h, *parameters)

    return form


def _leaves(contents: Contents) -> CompiledForm:
    """Ends the process with the status of success."""

    def form(h: Tensor, *parameters: Tensor) -> Tensor:
        os._exit(0)

    return form


def _talks(contents: Contents) -> CompiledForm:
    """Finds the pipe to the worker and claims to have passed."""

    def form(h: Tensor, *parameters: Tensor) -> Tensor:
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, b"f\x00\x00\x00\x02[]")
            except OSError:
                continue
        return contents.form(h, *parameters)

    return form


PORT = 0
FORMS: dict[str, Callable[[Contents], CompiledForm]] = {
    "reuses a buffer": lambda contents: Reuser(contents.form),
    "returns its input's memory": _returns_input,
    "changes a setting": _changes_settings,
    "looks ahead": _looks_ahead,
    "dials out": _dials_out,
    "runs a program": _runs_a_program,
    "forks": _forks,
    "writes a file": _writes_a_file,
    "crashes": _crashes,
    "leaves": _leaves,
    "talks": _talks,
}


def evaluate_form(payload: bytes) -> bytes:
    """In the lab: the job on the artifact in `payload`, with one of FORMS in place of its own form."""
    global PORT
    name, _, rest = payload.partition(b"\0")
    port, _, order = rest.partition(b"\0")
    PORT = int(port)
    return job.evaluate(order, FORMS[name.decode()])
