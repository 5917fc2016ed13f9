"""Stability: inputs of extreme size, NaN, many levels of the same graft, and training with it."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from esper.artifact.agree import outcome
from esper.artifact.script import CompiledForm
from esper.urabrask.checks import Finding
from esper.urabrask.descent import descend
from esper.urabrask.subject import DENORMAL, LARGE, TINY, Subject

DEPTH = 8
# A norm may be so many times the reference's, and at least one such part of it.
DEPTH_FACTOR = {torch.float64: 1.01, torch.float32: 1.01, torch.float16: 2.0, torch.bfloat16: 2.0}
STEPS, RATE = 200, 0.05
# What the last losses may be above the reference's, as a share of the first loss.
LOSS_MARGIN = {torch.float64: 0.05, torch.float32: 0.05, torch.float16: 0.25, torch.bfloat16: 0.25}
_LAST = 20


def check_finite(subject: Subject) -> Finding:
    """Value and gradients are finite where the reference's are in this type, for inputs of every size."""
    dtype = subject.interface.dtype
    sizes = {"normal": 1.0, "large": LARGE[dtype], "zero": 0.0, "tiny": TINY[dtype], "denormal": DENORMAL[dtype]}
    for word, scale in sizes.items():
        h = subject.middle(seed=5, scale=scale)
        want = outcome(subject.reference, h.double(), [w.double() for w in subject.weights])
        for form in (subject.form, subject.lowering):
            got = outcome(form, h, subject.weights)
            for a, b in zip(got, want, strict=True):
                bad = ~torch.isfinite(a) & torch.isfinite(b.to(dtype))
                if bad.any():
                    count = int(bad.sum())
                    return Finding(False, f"{count} of {a.numel()} values are not finite for {word} input ({scale:g})")
    return Finding(True, f"finite for inputs of size {', '.join(f'{scale:g}' for scale in sizes.values())}")


def check_nan(subject: Subject) -> Finding:
    """One NaN in the input gives NaN wherever it gives the reference one, and nowhere that the lowering has none.

    The lowering's count as well: some of torch's convolutions multiply a NaN by the zeros they pad channels with.
    """
    clean = subject.middle(seed=13)
    wide = [weight.double() for weight in subject.weights]
    for at in (0, clean.numel() // 2, clean.numel() - 1):
        h = clean.clone()
        h.view(-1)[at] = math.nan
        with torch.no_grad():
            want = subject.reference(h.double(), *wide).isnan()
            lowered, got = [
                form(h.clone(), *[weight.clone() for weight in subject.weights]).isnan()
                for form in (subject.lowering, subject.form)
            ]
        hidden, spread = int((want & ~got).sum()), int((got & ~(want | lowered)).sum())
        if hidden or spread:
            return Finding(False, f"for NaN at element {at} it hides {hidden} of the reference's and has {spread} more")
    return Finding(True, "NaN where the reference has NaN, for NaN at the first, a middle and the last element")


def check_depth(subject: Subject) -> Finding:
    """h + g(h), DEPTH times over: output and gradient at each level are of the size of the reference's."""
    dtype = subject.interface.dtype
    h, factor = subject.middle(seed=14), DEPTH_FACTOR[dtype]
    want = _norms(subject.reference, h.double(), [weight.double() for weight in subject.weights])
    got = _norms(subject.form, h, subject.weights)
    largest, smallest = torch.finfo(dtype).max / 16, torch.finfo(dtype).tiny * 16
    worst = 1.0
    for level, (a, b) in enumerate(zip(got, want, strict=True)):
        if not smallest < b < largest:
            continue  # the reference itself leaves the type's range
        ratio = a / b
        if not 1 / factor <= ratio <= factor:
            what = "output" if level == DEPTH else f"gradient at level {level}"
            return Finding(
                False,
                f"norm of the {what} of {DEPTH} is {ratio:.3g} times the reference's, at most {factor:g} or 1/that",
            )
        worst = max(worst, ratio, 1 / ratio)
    return Finding(True, f"norms through {DEPTH} levels within {worst:.4g} times the reference's, at most {factor:g}")


def check_training(subject: Subject) -> Finding:
    """STEPS of SGD from the weights of birth on a probe task end where the reference's own run ends, or lower."""
    dtype = subject.interface.dtype
    want = _losses(subject, subject.reference, torch.float64, torch.float64)
    if not all(map(math.isfinite, want)):
        return Finding(True, "the reference's own run diverges; there is nothing to compare with")
    got = _losses(subject, subject.form, dtype, torch.float64 if dtype == torch.float64 else torch.float32)
    bad = next((i for i, loss in enumerate(got) if not math.isfinite(loss)), None)
    if bad is not None:
        return Finding(False, f"the loss is not finite at step {bad} of {STEPS}; the reference's is")
    last, reference = (sum(losses[-_LAST:]) / _LAST for losses in (got, want))
    limit = reference + LOSS_MARGIN[dtype] * want[0]
    detail = f"loss {got[0]:.3g} to {last:.3g} in {STEPS} steps, at most {limit:.3g}; reference to {reference:.3g}"
    return Finding(last <= limit, detail)


def _norms(form: CompiledForm, h: Tensor, weights: Sequence[Tensor]) -> list[float]:
    """Norms of the loss's gradient by each level, input first, and of the output, last."""
    levels = [h.clone().requires_grad_()]
    for _ in range(DEPTH):
        levels.append(levels[-1] + form(levels[-1], *weights))
    upstream = torch.randn(h.shape, generator=torch.Generator().manual_seed(0)).to(h)
    gradients = torch.autograd.grad((levels[-1] * upstream).sum(), levels[:-1])
    return [tensor.detach().double().norm().item() for tensor in (*gradients, levels[-1])]


def _losses(subject: Subject, form: CompiledForm, dtype: torch.dtype, held: torch.dtype) -> list[float]:
    """Loss at each step. Parameters are kept in `held` and cast to `dtype` for each call, as mixed precision does.

    The task: g(h) = half of h one channel further. Heavy-ball SGD with clipped gradients, see descent.py.
    """
    batches = [subject.middle(seed=20 + i) for i in range(4)]
    targets = [0.5 * h.to(held).roll(1, subject.interface.channel_dim) for h in batches]
    weights = [weight.to(held).requires_grad_() for weight in subject.birth]
    velocity = [torch.zeros_like(weight) for weight in weights]
    losses = []
    for step in range(STEPS):
        h = batches[step % len(batches)].to(dtype)
        out = form(h, *[weight.to(dtype) for weight in weights]).to(held)
        loss = (out - targets[step % len(batches)]).square().mean()
        losses.append(loss.item())
        descend(loss, weights, velocity, RATE)
    return losses


CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "finite": check_finite,
    "nan": check_nan,
    "depth": check_depth,
    "training": check_training,
}
