"""blend_ beside torch's own in-place expressions: the rows `in place` of bench_blend.

`vs_lerp` is to `torch.Tensor.lerp_` of the same run; `dormant_ratio` is a call in which no slot takes part to one in
which it does, by the same backend: what a dormant chunk costs.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.harness import BASELINE, CONTROL, Arms, Call, Comparison, Effort, compare, cuda_clock, thread_clock
from bench.row import Row
from esper.ops import backends, blend_, state_mask
from esper.ops.blend import blend_reference

CHANNELS = 64
ON, OFF = 5, 1
ACTIVE = state_mask([ON])
FORCED = ("cpp", "cuda", "triton")
FORMS = {"convex": (True, ON), "residual": (False, ON), "dormant": (True, OFF)}


def arms(elements: int, dtype: torch.dtype, device: str) -> Arms:
    """Each on a host of its own, checked once. Hosts are written again and again, which does not change the time."""
    torch.manual_seed(0)
    start, seed = (torch.randn(elements // CHANNELS, CHANNELS, device=device).to(dtype) for _ in range(2))
    alphas = torch.tensor([0.3], device=device)
    alpha = alphas.to(dtype)
    made: dict[str, Call] = {
        BASELINE: _torchs("lerp_", start, seed, alpha),
        CONTROL: _torchs("lerp_", start, seed, alpha),
    }
    made["addcmul_"] = _torchs("addcmul_", start, seed, alpha)
    there = [backend for backend in FORCED if not backends.why_not(backend, device)]
    for form in FORMS:
        for backend in ("auto", *there):
            with backends.forced(backend):
                made[f"{form} {backend}"] = _ours(form, start, seed, alphas)
    return made


def _torchs(name: str, start: Tensor, seed: Tensor, alpha: Tensor) -> Call:
    host = start.clone()
    return lambda: getattr(host, name)(seed, alpha)


def _ours(form: str, start: Tensor, seed: Tensor, alphas: Tensor) -> Call:
    convex, state = FORMS[form]
    host, seeds = start.clone(), [seed]
    states = torch.full((1,), state, dtype=torch.uint8, device=start.device)
    blend_(host, seeds, alphas, states, ACTIVE, channel_dim=1, convex=convex)
    want = start if state == OFF else blend_reference(start, seeds, alphas, [0, CHANNELS], 1, convex)
    torch.testing.assert_close(host, want, rtol=2e-2, atol=2e-2)
    return lambda: blend_(host, seeds, alphas, states, ACTIVE, channel_dim=1, convex=convex)


def measure(elements: int, dtype: torch.dtype, device: str, effort: Effort) -> Comparison:
    clock = thread_clock if device == "cpu" else cuda_clock
    with torch.no_grad():
        return compare(
            lambda: arms(elements, dtype, device),
            effort,
            clock,
            around=lambda arm: backends.forced(arm.split()[-1] if arm.split()[-1] in FORCED else "auto"),
        )


def in_place_rows(size: str, elements: int, dtype: torch.dtype, device: str, effort: Effort) -> Iterator[Row]:
    found = measure(elements, dtype, device, effort)
    case = f"{size} {str(dtype).removeprefix('torch.')} in place"
    for arm in found.rounds[0][0]:
        if arm in (BASELINE, CONTROL):
            continue
        yield found.row("blend", f"{case} {arm}", "vs_lerp", arm=arm, against="lerp_", device=device)
        form, _, backend = arm.partition(" ")
        if form == "dormant":
            to = f"convex {backend}"
            yield found.row("blend", f"{case} {arm}", "dormant_ratio", arm=arm, to=to, against=to, device=device)
