"""What a region's kernels move and compute for each position, from the graph alone."""

from esper.artifact.regions import Region
from esper.blueprint.operators import OPERATORS
from esper.blueprint.plan import Plan
from esper.tezzeret.cost_model import Work

# (samples, positions of each) that a variant is weighed at: a small batch and a large one.
SIZES = ((8, 64), (32, 1024))
_SUM_BYTES = 4  # partial sums are float32
_BACKWARD_FLOPS = 3  # times forward's: its values again, and two for the gradients


def work_of(region: Region, direction: str, concrete: Plan) -> Work:
    """Of one pass of a region. Reads and writes of whole values; sums per program where positions share a gradient."""
    itemsize = concrete.interface.dtype.itemsize
    read = sum(one.channels for one in region.inputs if not one.per_sample)
    shown = region.channels * len(region.outputs)
    flops = sum(_flops(at, concrete) for at in region.steps)
    if direction == "forward":
        return Work((read + shown) * itemsize, 0, flops)
    sums = sum(one.channels for one in region.inputs if one.per_sample) + region.channels * len(region.vectors)
    kept = sum(wide for _, wide in region.kept)  # written here, and read by torch's product
    return Work((2 * read + shown + 2 * kept) * itemsize, 2 * sums * _SUM_BYTES, _BACKWARD_FLOPS * flops)


def programs_of(region: Region, samples: int, positions: int) -> int:
    """Programs of one launch, as the form makes them."""
    if region.by_sample:
        return samples * -(-positions // region.tile_rows)
    return -(-samples * positions // region.tile_rows)


def _flops(step: int, concrete: Plan) -> int:
    cost = OPERATORS[concrete.form.steps[step - 1].node.operator].cost(concrete.bindings[step - 1])
    return cost.products.plus(cost.elementwise).at(1)
