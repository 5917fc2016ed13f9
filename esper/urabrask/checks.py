"""Correctness: the checks a kernel must pass, in the order in which a person should fix things.

Each takes a subject and returns a finding: whether it passed, and in one line what was
seen and what the limit is. What they demand is written down in docs/evaluation.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from esper.artifact.agree import difference, differences, outcome, tensor_names
from esper.artifact.script import CompiledForm
from esper.urabrask.subject import FLOOR, Subject, limit_of


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `reading`: the share of its limit that was used, where there is a number."""

    passed: bool
    detail: str
    reading: float = 0.0


Check = Callable[[Subject], Finding]


def check_shape(subject: Subject) -> Finding:
    """The output has the input's shape, at every batch and position count."""
    for batch, positions in subject.shapes:
        h = subject.input(batch, positions, seed=1)
        out = _call(subject.form, h, subject.weights)
        if out.shape != h.shape:
            return Finding(False, f"returns {list(out.shape)} for {list(h.shape)}; the shapes must be equal")
    return Finding(True, f"equals the input's at {len(subject.shapes)} shapes")


def check_dtype(subject: Subject) -> Finding:
    """The output has the input's element type, and is where the input is."""
    h = subject.middle(seed=2)
    out = _call(subject.form, h, subject.weights)
    if out.dtype != h.dtype or out.device != h.device:
        return Finding(False, f"returns {out.dtype} on {out.device} for {h.dtype} on {h.device}; they must be equal")
    return Finding(True, f"{out.dtype} for {h.dtype}")


def check_gradient(subject: Subject) -> Finding:
    """Value and every gradient equal those of the reference in float64.

    Of the compiled form in the interface's type (twice, because TorchScript optimises after the first
    call) and in float64, and of the lowering in the interface's type; for half types see `limit_of`.
    """
    worst, where = 0.0, ""
    own, exact = subject.interface.dtype, torch.float64
    for batch, positions in subject.shapes:
        narrow = [subject.input(batch, positions, seed=3), *subject.weights]
        wide = [tensor.double() for tensor in narrow]
        want = outcome(subject.reference, wide[0], wide[1:])

        def off(form: CompiledForm, inputs: list[Tensor], want: list[Tensor] = want) -> list[float]:
            got = [tensor.double() for tensor in outcome(form, inputs[0], inputs[1:])]
            return differences(got, want, FLOOR[inputs[0].dtype])

        lowered, none = off(subject.lowering, narrow), [0.0] * len(want)
        for word, form, inputs, dtype, slack in (
            ("compiled form", subject.form, narrow, own, lowered),
            ("compiled form called again", subject.form, narrow, own, lowered),
            ("lowering", subject.lowering, narrow, own, lowered),
            ("compiled form in float64", subject.form, wide, exact, none),
        ):
            rows = zip(tensor_names(subject.lowered), off(form, inputs), slack, strict=True)
            for name, seen, of_lowering in rows:
                limit = limit_of(dtype, of_lowering)
                if not seen <= limit:
                    at = f"{name} of the {word} at batch {batch}, positions {list(positions)}"
                    return Finding(False, f"{at}: off by {seen:.3g} of the largest value, limit {limit:.3g}")
                if seen / limit >= worst:
                    worst, where = seen / limit, f"{name} of the {word}"
    return Finding(True, f"largest difference {worst:.2g} of its limit, in the {where}", worst)


def check_determinism(subject: Subject) -> Finding:
    """Equal inputs give equal bits, twice in a row, once TorchScript has optimised; no random numbers are drawn."""
    h = subject.middle(seed=4)
    for _ in range(3):
        outcome(subject.form, h, subject.weights)
    state = torch.get_rng_state()
    first, second = (outcome(subject.form, h, subject.weights) for _ in range(2))
    if not torch.equal(state, torch.get_rng_state()):
        return Finding(False, "draws from the process's random generator; a kernel must not")
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        if not torch.equal(a, b):
            what = "output" if i == 0 else f"gradient {i}"
            return Finding(False, f"{what} differs by {(a - b).abs().max().item():.3g} between equal calls; limit 0")
    return Finding(True, f"{len(first)} tensors equal bit for bit in two calls")


def check_identity(subject: Subject) -> Finding:
    """g(h) is exactly 0 with the weights of birth, h + 0 g(h) exactly h with any, and birth can be left by learning."""
    for batch, positions in subject.shapes:
        h = subject.input(batch, positions, seed=6)
        born = _call(subject.form, h, subject.birth)
        if born.any():
            return Finding(False, f"largest value at birth is {born.abs().max().item():.3g}; it must be exactly 0")
        if not torch.equal(h + 0.0 * _call(subject.form, h, subject.weights), h):
            return Finding(False, f"h + 0 g(h) differs from h at batch {batch}")
    gradients = outcome(subject.form, subject.middle(seed=7), subject.birth)[2:]
    if not any(gradient.any() for gradient in gradients):
        return Finding(False, "no parameter gets a gradient at birth, so it can never learn")
    return Finding(True, "0 at birth, h at alpha 0, and a gradient to learn from")


def check_causality(subject: Subject) -> Finding:
    """On a causal interface a change at later positions changes nothing at earlier ones."""
    if not subject.interface.causal:
        return Finding(True, "the interface is not causal; nothing to check")
    limit = 16 * torch.finfo(subject.interface.dtype).eps  # not bit for bit: a sum may be taken in another order
    batch, (length,) = subject.shapes[2]
    h = subject.input(batch, (length,), seed=8)
    along = 2 if subject.interface.kind.channels_first else 1
    before = _call(subject.form, h, subject.weights)
    for position in range(1, length):
        changed = h.clone()
        changed.narrow(along, position, length - position).add_(3.0)
        after = _call(subject.form, changed, subject.weights)
        seen = difference(after.narrow(along, 0, position).double(), before.narrow(along, 0, position).double())
        if not seen <= limit:
            return Finding(
                False,
                f"a change from position {position} on changes earlier ones by {seen:.3g} of the largest value, "
                f"limit {limit:.3g}",
            )
    return Finding(True, f"{length - 1} prefixes are independent of what follows")


def check_purity(subject: Subject) -> Finding:
    """Inputs and parameters stay as they were, the output is memory of its own, and nothing global changes."""
    h = subject.middle(seed=9)
    for grad in (False, True):
        given = [tensor.detach().clone() for tensor in (h, *subject.weights)]
        kept = [tensor.clone() for tensor in given]
        with torch.set_grad_enabled(grad):
            first = subject.form(*given)
            seen = first.clone()
            second = subject.form(subject.middle(seed=10), *given[1:])
            if torch.is_grad_enabled() != grad or torch.get_default_dtype() != torch.float32:
                return Finding(False, "changes a setting of the process: gradient mode or default type")
        for name, a, b in zip(("input", *subject.lowered.parameter_names), given, kept, strict=True):
            if not torch.equal(a, b):
                return Finding(False, f"writes into {name}{'' if grad else ' where no gradient is wanted'}")
            if a.untyped_storage().data_ptr() == first.untyped_storage().data_ptr():
                return Finding(False, f"returns the memory of {name}; its output must be its own")
        shared = first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        if shared or not torch.equal(first, seen):
            return Finding(False, "a second call changes the first one's output: it reuses a buffer")
    return Finding(True, "inputs and parameters unchanged, output not shared, settings unchanged")


def _call(form: CompiledForm, h: Tensor, weights: list[Tensor]) -> Tensor:
    """The form's value on copies, so that a form that writes where it must not spoils no other check."""
    with torch.no_grad():
        return form(h.clone(), *[weight.clone() for weight in weights])
