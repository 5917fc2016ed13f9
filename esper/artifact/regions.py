"""triton/regions.json: which steps of a graph one kernel computes, what it reads and what it writes.

Values are numbered as in the canonical form: 0 is the graft's input, i the i-th step from 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from esper.artifact import canonical_json
from esper.artifact.fields import Fields
from esper.blueprint.plan import Plan
from esper.blueprint.signature import Extent
from esper.errors import Corrupt, InvalidRequest

REGIONS = "triton/regions.json"
SEARCH = "triton/search.json"  # for people; nothing here reads it
MAX_REGIONS = 64
MAX_REGIONS_BYTES = 1 << 18
MAX_METADATA_BYTES = 1 << 16
ROWS, MAP = "rows", "map"
LAYOUTS = (ROWS, MAP)
PASSES = ("forward", "backward")
JOINED = ("joined_forward", "joined_backward")  # passes of the last region with the blend into the host
WHY_NOT_JOINED = "triton/joined.json"  # for people: why the last region has no such pair
PAIR = "low_rank"
KEPT = ("outer", "behind", "inner", "within")


@dataclass(frozen=True, slots=True)
class Outside:
    """A value a region reads: so many channels, and whether one row of it serves all positions of a sample."""

    value: int
    channels: int
    per_sample: bool


@dataclass(frozen=True, slots=True)
class Pair:
    """A low_rank step: up (down x), of places in the canonical order."""

    step: int
    down: int
    up: int
    rank: int


@dataclass(frozen=True, slots=True)
class Region:
    """One kernel pair; of the last region, two. Every step has `channels` channels and the same positions.

    `layout`: "rows", channels are neighbours in memory; "map", positions are.
    `tile_rows` x `tile_columns`: positions and channels one program holds; all channels are in one tile.
    """

    number: int  # from 1
    steps: tuple[int, ...]
    inputs: tuple[Outside, ...]
    parameters: tuple[int, ...]  # places in the canonical order
    outputs: tuple[int, ...]
    channels: int
    layout: str
    tile_rows: int
    tile_columns: int
    pairs: tuple[Pair, ...] = ()  # the graph has them, the file does not

    @property
    def vectors(self) -> tuple[int, ...]:
        """Parameters with one number for each channel: all but the pairs' matrices."""
        matrices = {place for pair in self.pairs for place in (pair.down, pair.up)}
        return tuple(place for place in self.parameters if place not in matrices)

    @property
    def kept(self) -> tuple[tuple[str, int], ...]:
        """(argument, numbers a position) of what backward writes for the gradients of the pairs' matrices.

        `outer` is a pair's input, `inner` what its first matrix makes of that; `behind` is its result's gradient,
        `within` that of `inner`. All are [samples x positions, numbers], whatever the layout.
        """
        return tuple(
            (f"{word}{pair.step}_ptr", pair.rank if word in ("inner", "within") else self.channels)
            for pair in self.pairs
            for word in KEPT
        )

    @property
    def products(self) -> tuple[tuple[str, str], ...]:
        """(argument, argument) whose product, the first transposed, is a matrix's gradient: of each pair, down, up."""
        factors = (("within", "outer"), ("behind", "inner"))
        return tuple((f"{a}{pair.step}_ptr", f"{b}{pair.step}_ptr") for pair in self.pairs for a, b in factors)

    @property
    def by_sample(self) -> bool:
        """Whether programs are laid out sample by sample; else all rows are one run."""
        return self.layout == MAP or any(one.per_sample for one in self.inputs)

    def kernel(self, direction: str) -> str:
        """Name of the kernel of a pass, which is also that of its files below triton/."""
        return f"region{self.number}_{direction}"

    @property
    def source(self) -> str:
        """The file that holds the kernels' Triton source."""
        return f"triton/region{self.number}.py"


def write_regions(regions: Sequence[Region]) -> bytes:
    """Canonical JSON; the same regions give the same bytes."""
    return canonical_json.write({"regions": [_written(region) for region in regions]})


def read_regions(data: bytes, concrete: Plan) -> tuple[Region, ...]:
    """Raises Corrupt unless the bytes are regions of this graph at this interface, each step in one of them at most."""
    try:
        fields = Fields(canonical_json.read(data, REGIONS, MAX_REGIONS_BYTES), REGIONS)
        listed = fields.take("regions", list)
        fields.end()
        if len(listed) > MAX_REGIONS:
            raise Corrupt(f"{REGIONS} lists {len(listed)} regions; at most {MAX_REGIONS}")
        regions = tuple(_read(one, number) for number, one in enumerate(listed, start=1))
    except InvalidRequest as error:
        raise Corrupt(str(error)) from error
    seen = [step for region in regions for step in region.steps]
    if len(set(seen)) != len(seen):
        raise Corrupt(f"{REGIONS} gives a step to two regions")
    found = tuple(described(one.number, one.steps, concrete, one.tile_rows, one.tile_columns) for one in regions)
    for region, own in zip(regions, found, strict=True):
        if _written(region) != _written(own):
            raise Corrupt(f"{REGIONS}: region {region.number} is not one of the graph beside it")
    return found


def last_region(regions: Sequence[Region], concrete: Plan) -> Region | None:
    """The region that makes the graph's last value, which has a second kernel pair, `JOINED`; None without one."""
    last = len(concrete.form.steps)
    return next((region for region in regions if last in region.outputs), None)


def described(number: int, steps: tuple[int, ...], concrete: Plan, rows: int, columns: int) -> Region:
    """The region that computes `steps`, from the graph alone. Raises Corrupt for steps the graph does not have."""
    form, kind = concrete.form, concrete.interface.kind
    if not steps or not all(1 <= step <= len(form.steps) for step in steps) or list(steps) != sorted(set(steps)):
        raise Corrupt(f"region {number} has steps {list(steps)[:9]}; the graph has 1 to {len(form.steps)}, in order")
    inside, last = set(steps), len(form.steps)
    read = {i: None for at in steps for i in form.steps[at - 1].inputs if i not in inside}
    shown = [at for at in steps if at == last or _used_outside(at, inside, concrete)]
    parameters = {place: None for at in steps for place in form.steps[at - 1].parameters}
    channels, extent = value_type(steps[0], concrete)
    full = extent is Extent.FULL
    inputs = []
    for value in read:
        wide, its = value_type(value, concrete)
        inputs.append(Outside(value, wide, full and its is Extent.POOLED))
    layout = MAP if kind.channels_first and full else ROWS
    pairs = tuple(_pair(at, concrete) for at in steps if form.steps[at - 1].node.operator == PAIR)
    return Region(number, steps, tuple(inputs), tuple(parameters), tuple(shown), channels, layout, rows, columns, pairs)


def value_type(value: int, concrete: Plan) -> tuple[int, Extent]:
    """Channels and extent of a value."""
    if not value:
        return concrete.interface.channels, Extent.FULL
    binding = concrete.bindings[value - 1]
    return binding.channels, binding.extent


def _pair(step: int, concrete: Plan) -> Pair:
    down, up = concrete.form.steps[step - 1].parameters[:2]
    return Pair(step, down, up, concrete.bindings[step - 1].integer("rank"))


def _used_outside(value: int, inside: set[int], concrete: Plan) -> bool:
    users = (at for at, step in enumerate(concrete.form.steps, start=1) if value in step.inputs)
    return any(at not in inside for at in users)


def _written(region: Region) -> dict[str, Any]:
    inputs = [{"channels": o.channels, "per_sample": int(o.per_sample), "value": o.value} for o in region.inputs]
    return {
        "channels": region.channels,
        "inputs": inputs,
        "layout": region.layout,
        "outputs": list(region.outputs),
        "parameters": list(region.parameters),
        "steps": list(region.steps),
        "tile_columns": region.tile_columns,
        "tile_rows": region.tile_rows,
    }


def _read(value: Any, number: int) -> Region:
    one = Fields(value if type(value) is dict else {}, f"{REGIONS}.regions[{number - 1}]")
    inputs = []
    for entry in one.take("inputs", list):
        each = Fields(entry if type(entry) is dict else {}, f"{one.where}.inputs")
        place, channels, per_sample = each.integer("value"), each.integer("channels", 1), each.integer("per_sample")
        each.end()
        inputs.append(Outside(place, channels, bool(per_sample)))
    region = Region(
        number,
        _numbers(one, "steps"),
        tuple(inputs),
        _numbers(one, "parameters"),
        _numbers(one, "outputs"),
        one.integer("channels", 1),
        one.one_of("layout", LAYOUTS),
        one.integer("tile_rows", 1, 1 << 16),
        one.integer("tile_columns", 1, 1 << 16),
    )
    one.end()
    return region


def _numbers(fields: Fields, name: str) -> tuple[int, ...]:
    found = fields.take(name, list)
    if any(type(number) is not int for number in found):
        raise fields.refuse(name, "must hold whole numbers")
    return tuple(found)
