"""A graph computed with its regions' kernels, and torch for the rest; the same function, parameters and gradients.

How a kernel is launched is the caller's: machine code on a GPU, or Triton's interpreter in a test.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esper.artifact.regions import Outside, Region, last_region
from esper.blueprint.plan import Plan
from esper.errors import Corrupt, InvalidRequest, ShapeMismatch

# launch(kernel name, programs, arguments): runs one kernel, on tensors that are dense and aligned to 16 bytes
Launch = Callable[[str, int, Mapping[str, Tensor | int]], None]

MOST_POSITIONS = (1 << 31) - 1
_ALIGNMENT_BYTES = 16


class FusedForm:
    """form(h, *parameters) as every compiled form; gradients once, not twice.

    `state` is one number on the tensors' device, the seed's row of its table, and `active` the bit set of states in
    which kernels work: in any other they leave memory alone, and what the form returns is not defined. `dtype`: the one
    type that the kernels were compiled for; None, where they take any. `joins`: `launch` has the last region's joined
    kernels too.
    """

    def __init__(
        self,
        concrete: Plan,
        regions: Sequence[Region],
        launch: Launch,
        state: Tensor,
        active: int,
        dtype: torch.dtype | None = None,
        joins: bool = False,
    ) -> None:
        self.state = state
        self._dtype = dtype
        self.active = active
        self._launch = launch
        self._forms = concrete.forms()
        self._steps = concrete.form.steps
        self._schedule = _scheduled(concrete, regions)
        self._last = last_region(regions, concrete) if joins else None

    def __call__(self, h: Tensor, *parameters: Tensor) -> Tensor:
        def fuse(region: Region, read: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return _Fused.apply(self, region, *read)  # type: ignore[no-any-return, no-untyped-call]

        return self._computed(h, parameters, fuse)

    def joins(self, host: Tensor, alpha: Tensor) -> bool:
        """Whether `joined` does for them what this form and the op `blend` after it do, down to the memory order."""
        return (
            self._last is not None
            and (self._dtype is None or host.dtype is self._dtype)
            and host.is_contiguous()
            and alpha.dtype is torch.float32
            and alpha.device == host.device
        )

    def joined(self, host: Tensor, alpha: Tensor, *parameters: Tensor, convex: bool) -> Tensor:
        """host + alpha g(host), or convex host + alpha (g(host) - host), without a launch of its own; as host.

        alpha: 0-dim float32 on the host's device. What g returns is not rounded before it is blended. Differentiable
        in all tensors, once. Raises InvalidRequest where `joins` is false, ShapeMismatch as the form.
        """
        if not self.joins(host, alpha):
            raise InvalidRequest(
                f"a form without joined kernels for {host.dtype} in {list(host.stride())} strides and alpha in "
                f"{alpha.dtype} on {alpha.device} was asked to blend; call the form, then esper.ops.blend"
            )

        def fuse(region: Region, read: Sequence[Tensor]) -> tuple[Tensor, ...]:
            if region is self._last:
                return _Joined.apply(self, region, convex, host, alpha, *read)  # type: ignore[no-any-return, no-untyped-call]
            return _Fused.apply(self, region, *read)  # type: ignore[no-any-return, no-untyped-call]

        return self._computed(host, parameters, fuse)

    def _computed(
        self, h: Tensor, parameters: Sequence[Tensor], fuse: Callable[[Region, Sequence[Tensor]], tuple[Tensor, ...]]
    ) -> Tensor:
        values: dict[int, Tensor] = {0: h}
        for item in self._schedule:
            if isinstance(item, Region):
                read = [values[one.value] for one in item.inputs] + [parameters[place] for place in item.parameters]
                if self._dtype is not None:  # under autocast torch's own steps make other types
                    read = [tensor.to(self._dtype) for tensor in read]
                values |= zip(item.outputs, fuse(item, read), strict=True)
            else:
                step = self._steps[item - 1]
                operands = [values[i] for i in step.inputs] + [parameters[place] for place in step.parameters]
                values[item] = self._forms[item - 1].call(*operands)
        return values[len(self._steps)]

    def run(
        self, region: Region, direction: str, programs: int, given: Mapping[str, Tensor | int], positions: int
    ) -> None:
        """Launch one kernel on a region's arguments by name."""
        arguments: dict[str, Tensor | int] = {"state_ptr": self.state, "active": self.active, **given}
        if programs:
            self._launch(region.kernel(direction), programs, arguments | {"positions": positions})


class _Fused(torch.autograd.Function):
    """One region; what it was given is kept, and nothing between."""

    @staticmethod
    def forward(ctx: Any, form: FusedForm, region: Region, *tensors: Tensor) -> tuple[Tensor, ...]:
        dense = [_dense(tensor) for tensor in tensors]
        ctx.form, ctx.region = form, region
        ctx.save_for_backward(*dense)
        return _Fused.made(form, region, "forward", dense, {})

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        given = [_dense(gradient) for gradient in gradients]
        return None, None, *_Fused.gradients(ctx.form, ctx.region, "backward", ctx.saved_tensors, given, {})

    @staticmethod
    def made(
        form: FusedForm, region: Region, direction: str, dense: Sequence[Tensor], more: Mapping[str, Tensor | int]
    ) -> tuple[Tensor, ...]:
        """What a forward kernel makes of dense tensors. `more`: arguments beside the region's own."""
        given = _inputs(region, dense)
        like = _shape_of(region, dense)
        made = {f"v{value}_ptr": dense[0].new_empty(like) for value in region.outputs}
        _, positions, programs = _grid(region, like)
        form.run(region, direction, programs, {**given, **made, **more}, positions)
        return tuple(made.values())

    @staticmethod
    def gradients(
        form: FusedForm,
        region: Region,
        direction: str,
        dense: Sequence[Tensor],
        gradients: Sequence[Tensor],
        more: Mapping[str, Tensor | int],
    ) -> tuple[Tensor, ...]:
        """Those of what the region reads, by a backward kernel, from those of its outputs; all dense."""
        like = _shape_of(region, dense)
        samples, positions, programs = _grid(region, like)
        tensors = _inputs(region, dense)
        tensors |= {f"d{v}_ptr": gradient for v, gradient in zip(region.outputs, gradients, strict=True)}
        written: list[tuple[str, Tensor]] = []
        for one, tensor in zip(region.inputs, dense, strict=False):
            if one.per_sample:
                written.append((f"d{one.value}_sums_ptr", _partial(dense[0], programs, one.channels)))
            else:
                written.append((f"d{one.value}_ptr", torch.empty_like(tensor)))
        for place in region.vectors:
            written.append((f"p{place}_sums_ptr", _partial(dense[0], programs, region.channels)))
        kept = {name: dense[0].new_empty((samples * positions, wide)) for name, wide in region.kept}
        form.run(region, direction, programs, {**tensors, **dict(written), **kept, **more}, positions)
        shares = [tensor for _, tensor in written]
        made = [
            _summed(one, share, samples, tensor)
            for one, share, tensor in zip(region.inputs, shares, dense, strict=False)
        ]
        inputs = len(region.inputs)
        whole = _of_matrices(region, kept)
        whole |= {place: share.sum(0) for place, share in zip(region.vectors, shares[inputs:], strict=True)}
        made += [whole[place].to(p.dtype) for place, p in zip(region.parameters, dense[inputs:], strict=True)]
        return tuple(made)


class _Joined(torch.autograd.Function):
    """The last region, its last value blended into the host. The host is kept where the gradient of alpha needs it."""

    @staticmethod
    def forward(
        ctx: Any, form: FusedForm, region: Region, convex: bool, host: Tensor, alpha: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        dense, below = [_dense(tensor) for tensor in tensors], _dense(host)
        if (seen := _shape_of(region, dense)) != host.shape:
            raise ShapeMismatch(f"region {region.number} makes {list(seen)} for a host of {list(host.shape)}")
        ctx.form, ctx.region, ctx.convex, ctx.sums = form, region, convex, ctx.needs_input_grad[4]
        kept = [below] if convex and ctx.sums else []
        ctx.save_for_backward(alpha, *kept, *dense)
        more: dict[str, Tensor | int] = {"host_ptr": below, "alpha_ptr": alpha, "convex": int(convex)}
        return _Fused.made(form, region, "joined_forward", dense, more)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        form, region = ctx.form, ctx.region
        alpha, *dense = ctx.saved_tensors
        given = [_dense(gradient) for gradient in gradients]
        d = given[-1]
        # of the pointers that the settings rule out none is followed; any tensor of the type will do for them
        host = dense.pop(0) if ctx.convex and ctx.sums else d
        d_host = torch.empty_like(d) if ctx.convex else d
        shares = _partial(d, _grid(region, d.shape)[2], 1)
        more: dict[str, Tensor | int] = {"host_ptr": host, "alpha_ptr": alpha, "dhost_ptr": d_host}
        more |= {"alpha_sums_ptr": shares, "convex": int(ctx.convex), "sums": int(ctx.sums)}
        made = _Fused.gradients(form, region, "joined_backward", dense, given, more)
        return (None, None, None, d_host, shares.sum() if ctx.sums else None, *made)


def _scheduled(concrete: Plan, regions: Sequence[Region]) -> tuple[Region | int, ...]:
    """Regions and the steps outside them, each after all it reads. Raises Corrupt where two wait for each other."""
    taken = {step for region in regions for step in region.steps}
    waiting: list[Region | int] = [*regions, *(s for s in range(1, len(concrete.form.steps) + 1) if s not in taken)]
    ready, order = {0}, list[Region | int]()
    while waiting:
        for item in waiting:
            read, made = _reads_and_makes(item, concrete)
            if read <= ready:
                break
        else:
            raise Corrupt("two regions wait for each other; compile the kernel again")
        waiting.remove(item)
        order.append(item)
        ready |= made
    return tuple(order)


def _reads_and_makes(item: Region | int, concrete: Plan) -> tuple[set[int], set[int]]:
    if isinstance(item, int):
        return set(concrete.form.steps[item - 1].inputs), {item}
    return {one.value for one in item.inputs}, set(item.outputs)


def _dense(tensor: Tensor) -> Tensor:
    dense = tensor.contiguous()
    return dense.clone() if dense.data_ptr() % _ALIGNMENT_BYTES else dense


def _inputs(region: Region, dense: Sequence[Tensor]) -> dict[str, Tensor]:
    names = [f"v{one.value}_ptr" for one in region.inputs] + [f"p{place}_ptr" for place in region.parameters]
    return dict(zip(names, dense, strict=True))


def _shape_of(region: Region, dense: Sequence[Tensor]) -> tuple[int, ...]:
    """Sizes of what the region makes: those of its inputs, broadcast. Raises ShapeMismatch for other channels."""
    shape = tuple(torch.broadcast_shapes(*(t.shape for _, t in zip(region.inputs, dense, strict=False))))
    if region.channels not in shape[1:]:
        raise ShapeMismatch(f"region {region.number} is for {region.channels} channels, its inputs have {list(shape)}")
    return shape


def _grid(region: Region, shape: Sequence[int]) -> tuple[int, int, int]:
    """(samples, positions of each, programs). Raises ShapeMismatch where positions do not fit 32 bits."""
    rows = 1
    for size in shape:
        rows *= size
    rows //= region.channels
    samples = shape[0] if region.by_sample else 1
    positions = rows // max(1, samples)
    if positions > MOST_POSITIONS:
        raise ShapeMismatch(f"region {region.number}: {positions} positions; a launch takes at most {MOST_POSITIONS}")
    return samples, positions, samples * -(-positions // region.tile_rows)


def _partial(like: Tensor, programs: int, channels: int) -> Tensor:
    return torch.empty((programs, channels), dtype=torch.float32, device=like.device)


def _of_matrices(region: Region, kept: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Place -> gradient of every matrix: products over all positions, as those of a linear step."""
    made: dict[int, Tensor] = {}
    places = (place for pair in region.pairs for place in (pair.down, pair.up))
    for place, (left, right) in zip(places, region.products, strict=True):
        share = kept[left].T @ kept[right]
        made[place] = made[place] + share if place in made else share
    return made


def _summed(one: Outside, share: Tensor, samples: int, tensor: Tensor) -> Tensor:
    """The gradient of an input from what the kernel wrote."""
    if not one.per_sample:
        return share
    by_sample = share.view(samples, len(share) // max(1, samples), one.channels)
    return by_sample.sum(1).view(tensor.shape).to(tensor.dtype)
