"""A graph computed with its regions' kernels, and torch for the rest; the same function, parameters and gradients.

How a kernel is launched is the caller's: machine code on a GPU, or Triton's interpreter in a test.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esper.artifact.regions import Outside, Region
from esper.blueprint.plan import Plan
from esper.errors import Corrupt, ShapeMismatch

# launch(kernel name, programs, arguments): runs one kernel, on tensors that are dense and aligned to 16 bytes
Launch = Callable[[str, int, Mapping[str, Tensor | int]], None]

MOST_POSITIONS = (1 << 31) - 1
_ALIGNMENT_BYTES = 16


class FusedForm:
    """form(h, *parameters) as every compiled form; gradients once, not twice.

    `state` is one number on the tensors' device, the seed's row of its table, and `active` the bit set of states in
    which kernels work: in any other they leave memory alone, and what the form returns is not defined. `dtype`: the one
    type that the kernels were compiled for; None, where they take any.
    """

    def __init__(
        self,
        concrete: Plan,
        regions: Sequence[Region],
        launch: Launch,
        state: Tensor,
        active: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.state = state
        self._dtype = dtype
        self.active = active
        self._launch = launch
        self._forms = concrete.forms()
        self._steps = concrete.form.steps
        self._schedule = _scheduled(concrete, regions)

    def __call__(self, h: Tensor, *parameters: Tensor) -> Tensor:
        values: dict[int, Tensor] = {0: h}
        for item in self._schedule:
            if isinstance(item, Region):
                read = [values[one.value] for one in item.inputs] + [parameters[place] for place in item.parameters]
                if self._dtype is not None:  # under autocast torch's own steps make other types
                    read = [tensor.to(self._dtype) for tensor in read]
                made = _Fused.apply(self, item, *read)  # type: ignore[no-untyped-call]
                values |= zip(item.outputs, made, strict=True)
            else:
                step = self._steps[item - 1]
                operands = [values[i] for i in step.inputs] + [parameters[place] for place in step.parameters]
                values[item] = self._forms[item - 1].call(*operands)
        return values[len(self._steps)]

    def run(self, region: Region, direction: str, programs: int, tensors: Mapping[str, Tensor], positions: int) -> None:
        """Launch one kernel over a region's tensors by argument name."""
        arguments: dict[str, Tensor | int] = {"state_ptr": self.state, "active": self.active, **tensors}
        if programs:
            self._launch(region.kernel(direction), programs, arguments | {"positions": positions})


class _Fused(torch.autograd.Function):
    """One region; what it was given is kept, and nothing between."""

    @staticmethod
    def forward(ctx: Any, form: FusedForm, region: Region, *tensors: Tensor) -> tuple[Tensor, ...]:
        dense = [_dense(tensor) for tensor in tensors]
        ctx.form, ctx.region = form, region
        ctx.save_for_backward(*dense)
        given = _inputs(region, dense)
        like = _shape_of(region, dense)
        made = {f"v{value}_ptr": dense[0].new_empty(like) for value in region.outputs}
        _, positions, programs = _grid(region, like)
        form.run(region, "forward", programs, given | made, positions)
        return tuple(made.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        form, region, dense = ctx.form, ctx.region, ctx.saved_tensors
        like = _shape_of(region, dense)
        samples, positions, programs = _grid(region, like)
        tensors = _inputs(region, dense)
        tensors |= {f"d{v}_ptr": _dense(g) for v, g in zip(region.outputs, gradients, strict=True)}
        written: list[tuple[str, Tensor]] = []
        for one, tensor in zip(region.inputs, dense, strict=False):
            if one.per_sample:
                written.append((f"d{one.value}_sums_ptr", _partial(dense[0], programs, one.channels)))
            else:
                written.append((f"d{one.value}_ptr", torch.empty_like(tensor)))
        for place in region.vectors:
            written.append((f"p{place}_sums_ptr", _partial(dense[0], programs, region.channels)))
        kept = {name: dense[0].new_empty((samples * positions, wide)) for name, wide in region.kept}
        form.run(region, "backward", programs, tensors | dict(written) | kept, positions)
        shares = [tensor for _, tensor in written]
        made = [
            _summed(one, share, samples, tensor)
            for one, share, tensor in zip(region.inputs, shares, dense, strict=False)
        ]
        inputs = len(region.inputs)
        whole = _of_matrices(region, kept)
        whole |= {place: share.sum(0) for place, share in zip(region.vectors, shares[inputs:], strict=True)}
        made += [whole[place].to(p.dtype) for place, p in zip(region.parameters, dense[inputs:], strict=True)]
        return (None, None, *made)


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
