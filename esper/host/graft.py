"""A graft inside its host: the registered child `esper_<slot>` of a site.

    residual   h + alpha * g(h)                 (default; g ends in zeros at birth)
    gated      h + alpha * tanh(gamma) * g(h)   gamma learned per channel from 0
    convex     h + alpha * (g(h) - h)

h is the site's output, or the slot's chunk of its channels. alpha is a 0-dim tensor
owned by the seed table, so that a ramp changes no Python value a compiler guards on.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from esper.blueprint.lower import Lowered
from esper.host.launches import blend_slots
from esper.host.layout import Layout

Form = Callable[..., Tensor]


class JoiningForm(Protocol):
    """A form whose last kernel can write what the branch is joined to, in place of the branch."""

    def joins(self, host: Tensor, alpha: Tensor) -> bool:
        """Whether `joined` gives for these what the form and the op `blend` after it give."""

    def joined(self, host: Tensor, alpha: Tensor, *parameters: Tensor, convex: bool) -> Tensor:
        """host + alpha g(host), or convex host + alpha (g(host) - host)."""


class Strategy(enum.Enum):
    RESIDUAL = "residual"
    CONVEX = "convex"
    GATED = "gated"


class Graft(nn.Module):
    """One seed's branch, its place in the site's output and its blend factor.

    A live graft guards the step: if its kernel raises, returns another shape or a
    value that is not finite, the host's output passes unchanged and `fault` says what
    happened. `settle` ends the guard and fixes alpha at 1, for fossils.
    """

    alpha: Tensor

    def __init__(
        self,
        body: Lowered,
        layout: Layout,
        alpha: Tensor,
        *,
        span: tuple[int, int] | None = None,
        strategy: Strategy = Strategy.RESIDUAL,
    ) -> None:
        super().__init__()
        self.body = body
        self.layout = layout
        self.alpha = alpha
        self.span = span
        self.strategy = strategy
        self.settled = False
        self.fault = ""
        self.form: Form | None = None
        if strategy is Strategy.GATED:
            after = layout.kind.position_dims if layout.kind.channels_first else 0
            shape = [body.interface.channels] + [1] * after
            like = next(body.parameters(), torch.empty(0, dtype=body.interface.dtype, device=alpha.device))
            self.gamma = nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device))

    def use_form(self, form: Form | None) -> None:
        """Compute g with `form(h, *parameters)`, a compiled equal of the body; None: with the body itself.

        A JoiningForm joins it too, where `joining_form` says so.
        """
        self.form = form

    def settle(self) -> None:
        """alpha is 1 from here on and the output is no longer checked."""
        self.settled = True
        self.form = None

    @property
    def blends(self) -> bool:
        """Whether the op `blend` joins it, alone or with others: live, and not gated."""
        return not self.settled and self.strategy is not Strategy.GATED

    def forward(self, host: Tensor) -> Tensor:
        """Join this graft to a site's output, same shape and layout."""
        return join([self], host)

    def candidate(self, host: Tensor) -> Tensor:
        """`forward` without the guard: a candidate's fault ends its own trial and nothing else."""
        return join([self], host, guarded=False)

    def part(self, turned: Tensor) -> Tensor:
        """The slot's chunk of the channels."""
        if self.span is None:
            return turned
        start, stop = self.span
        return turned.narrow(self.layout.channel_dim, start, stop - start)

    def branch(self, part: Tensor) -> Tensor:
        """g(part)."""
        if self.form is not None and not torch.compiler.is_compiling():
            return self.form(part, *self.body.ordered_parameters())
        branch: Tensor = self.body(part)
        return branch

    def guarded_branch(self, part: Tensor) -> Tensor | None:
        """g(part); None, with `fault` set, where it cannot join. A fossil's, and compiled code's, is not checked."""
        if self.settled or torch.compiler.is_compiling():
            return self.branch(part)
        return self._guarded(self.branch, part)

    def joining_form(self, host: Tensor, *, guarded: bool) -> JoiningForm | None:
        """The form, where it joins this graft to a whole host by itself; None where it returns the branch for that.

        A guard on the CPU looks at the branch's values for NaN and infinities. A kernel that joins does not write
        them, and what it writes can be finite where they are not needed, so that there the branch is computed.
        """
        if self.form is None or not self.blends or self.span is not None or torch.compiler.is_compiling():
            return None
        if guarded and host.is_cpu:
            return None
        form = cast(JoiningForm, self.form)
        return form if hasattr(form, "joins") and form.joins(host, self.alpha) else None

    def joined_by(self, form: JoiningForm, host: Tensor, *, guarded: bool) -> Tensor | None:
        """`host` with this graft joined in by its form; None, with `fault` set, where it cannot join."""

        def compute(host: Tensor) -> Tensor:
            convex = self.strategy is Strategy.CONVEX
            return form.joined(host, self.alpha, *self.body.ordered_parameters(), convex=convex)

        return self._guarded(compute, host) if guarded else compute(host)

    def _guarded(self, compute: Callable[[Tensor], Tensor], part: Tensor) -> Tensor | None:
        """compute(part), of part's shape; None, with `fault` set, where it raised or returned what cannot join."""
        try:
            branch = compute(part)
        except Exception as error:  # whatever a kernel raises, the host's step goes on
            self.fault = f"raised {type(error).__name__}: {error}"
            return None
        if fault := _fault_of(branch, part):
            self.fault = fault
            return None
        return branch

    def joined_apart(self, turned: Tensor, part: Tensor, branch: Tensor) -> Tensor:
        """`turned` with this graft joined in the wider of the two dtypes and rounded to the host's, without `blend`."""
        delta = self._delta(part, branch)
        joined = (part + (delta if self.settled else self.alpha * delta)).type_as(part)
        if self.span is None:
            return joined
        start, stop = self.span
        dim = self.layout.channel_dim
        rest = turned.shape[dim] - stop
        return torch.cat([turned.narrow(dim, 0, start), joined, turned.narrow(dim, stop, rest)], dim)

    def _delta(self, part: Tensor, branch: Tensor) -> Tensor:
        if self.strategy is Strategy.CONVEX:
            return branch - part
        if self.strategy is Strategy.GATED:
            return torch.tanh(self.gamma) * branch
        return branch

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Graft":
        """Follow `.to(device)`; alpha stays float32 whatever `.half()` does to parameters."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.alpha = self.alpha.to(fn(torch.empty(0, device=self.alpha.device)).device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy computes with the body: a compiled form is neither picklable nor copyable."""
        return {**self.__dict__, "form": None}

    def extra_repr(self) -> str:
        where = "all channels" if self.span is None else f"channels {self.span[0]}:{self.span[1]}"
        return f"{self.strategy.value}, {where}, {'settled' if self.settled else f'alpha {float(self.alpha):.3g}'}"


def join(grafts: Sequence[Graft], host: Tensor, *, guarded: bool = True) -> Tensor:
    """Join grafts to a site's output, same shape and layout: one, or several of one strategy on disjoint chunks.

    Each sees its own chunk only, so that all are one launch of `blend`. Under autocast a branch may come in another
    dtype than the host's; that one is joined apart. Where no branch can join, the host's own tensor is returned.
    One graft alone over all channels is joined by its form where that can: a launch less, and no branch in memory.
    """
    first = grafts[0]
    turned = host.transpose(0, 1) if first.layout.transposed else host
    if len(grafts) == 1 and (form := first.joining_form(turned, guarded=guarded)):
        joined = first.joined_by(form, turned, guarded=guarded)
    else:
        joined = _with_branches(grafts, turned, guarded)
    if joined is None or joined is turned:
        return host
    return joined.transpose(0, 1) if first.layout.transposed else joined


def _with_branches(grafts: Sequence[Graft], turned: Tensor, guarded: bool) -> Tensor:
    """Their branches, joined in one launch; `turned` itself where none can join."""
    first = grafts[0]
    joined, slots = turned, []
    for graft in grafts:
        part = graft.part(turned)
        branch = graft.guarded_branch(part) if guarded else graft.branch(part)
        if branch is None:
            continue
        if graft.blends and branch.dtype is part.dtype:
            slots.append((branch, graft.alpha, graft.span))
        else:
            joined = graft.joined_apart(joined, part, branch)
    if slots:
        joined = blend_slots(joined, slots, first.layout.channel_dim, first.strategy is Strategy.CONVEX)
    return joined


def _fault_of(branch: object, part: Tensor) -> str:
    """Why what a kernel returned cannot join `part`; empty if it can."""
    if not isinstance(branch, Tensor) or not branch.is_floating_point():
        kind = str(branch.dtype) if isinstance(branch, Tensor) else type(branch).__name__
        return f"returned {kind}, not a floating-point tensor"
    if branch.shape != part.shape or branch.device != part.device:
        return f"returned {list(branch.shape)} on {branch.device} for {list(part.shape)} on {part.device}"
    # Reading the device would wait for it, so this is for the CPU alone. A NaN or an infinity makes the sum not
    # finite; large values can too, so that only then every value is looked at.
    seen = branch.detach()
    if part.is_cpu and not torch.isfinite(seen.sum(dtype=torch.float32)) and not torch.isfinite(seen).all():
        return "returned a value that is not finite"
    return ""
