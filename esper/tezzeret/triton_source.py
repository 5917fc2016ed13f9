"""Write a region as Triton source: one forward and one backward kernel, which anybody can read; of the last, two each.

Arithmetic is float32, offsets have 64 bits. The backward kernel keeps nothing of the forward: it computes the values
again from the region's inputs. A parameter's gradient, and that of a value that all positions of a sample share, is
one partial sum per program; adding these is left to torch.sum: they are few, and it is deterministic. The gradients of
a low_rank's matrices are products over all positions, torch's too: backward writes their factors.
"""

import textwrap

from esper.artifact.regions import JOINED, MAP, Outside, Region
from esper.blueprint.plan import Plan
from esper.tezzeret import blend_lines
from esper.tezzeret.rule import Names, Rule
from esper.tezzeret.rules import HELPERS, RULES

_DORMANT = """    # a seed that is not at work touches no memory but its state
    state = tl.load(state_ptr).to(tl.int64)
    if (state > 62) | (((active >> tl.minimum(state, 62)) & 1) == 0):
        return
"""


def triton_source(region: Region, concrete: Plan) -> str:
    """Source of its kernels. The same region of the same graph at the same interface gives the same text."""
    steps = [concrete.form.steps[at - 1].node for at in region.steps]
    named = [f"{at} {node.operator}" for at, node in zip(region.steps, steps, strict=True)]
    listed = textwrap.fill(", ".join(named), 116, initial_indent="    ", subsequent_indent="    ")
    used = sorted({name for node in steps for name in RULES[node.operator].helpers})
    joins = len(concrete.form.steps) in region.outputs
    head = (
        f'"""{len(steps)} steps of a blueprint for {concrete.interface}:\n\n{listed}\n\n'
        "v<i> is the value of step i, 0 being the input; d<i> its gradient; p<i> the i-th parameter. Of a seed whose\n"
        "state is not in the bit set `active` nothing is read and nothing is written."
        f'{blend_lines.NOTE.format(value=region.outputs[-1]) if joins else ""}\n"""\n\n'
        "import triton\nimport triton.language as tl\n"
    )
    parts = [head, *(HELPERS[name] for name in used), _forward(region, concrete), _backward(region, concrete)]
    if joins:
        ahead, back = JOINED
        parts += [blend_lines.HELPER, _forward(region, concrete, ahead), _backward(region, concrete, back)]
    return "\n\n".join(part.rstrip("\n") + "\n" for part in parts)


def arguments(region: Region, direction: str) -> tuple[str, ...]:
    """Runtime arguments of a kernel, in order. Pointers end in _ptr; those of partial sums in _sums_ptr."""
    read = [f"v{one.value}_ptr" for one in region.inputs] + [f"p{place}_ptr" for place in region.parameters]
    if direction.endswith("forward"):
        written = [f"v{value}_ptr" for value in region.outputs]
    else:
        written = [f"d{value}_ptr" for value in region.outputs]
        written += [f"d{one.value}_sums_ptr" if one.per_sample else f"d{one.value}_ptr" for one in region.inputs]
        written += [f"p{place}_sums_ptr" for place in region.vectors]
        written += [name for name, _ in region.kept]
    settings: tuple[str, ...] = ()
    if direction in JOINED:
        read += blend_lines.READ
        written += blend_lines.WRITTEN[direction]
        settings = blend_lines.SETTINGS[direction]
    return ("state_ptr", "active", *read, *written, *settings, "positions")


def _forward(region: Region, concrete: Plan, direction: str = "forward") -> str:
    lines = [*_start(region, direction), *_values(region, concrete)]
    if direction in JOINED:
        lines += blend_lines.forward_lines(region.outputs[-1])
    lines += [_store(f"v{value}_ptr", f"v{value}") for value in region.outputs]
    return _joined(lines)


def _backward(region: Region, concrete: Plan, direction: str = "backward") -> str:
    lines = [*_start(region, direction), *_values(region, concrete)]
    lines += [f"    d{v} = tl.load(d{v}_ptr + at, mask=inside, other=0).to(tl.float32)" for v in region.outputs]
    if direction in JOINED:
        lines += blend_lines.backward_lines(region.outputs[-1])
    lines += _adjoints(region, concrete)
    for one in region.inputs:
        lines += _input_gradient(one, region)
    for place in region.vectors:
        lines += _sums(f"p{place}_sums_ptr", f"dp{place}", region.channels)
    return _joined(lines)


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _start(region: Region, direction: str) -> list[str]:
    """Signature, the check for dormancy, and where this program's elements are."""
    c = region.channels
    at = f"(sample * positions + position)[:, None] * {c} + channel[None, :]"
    if region.layout == MAP:
        at = f"(sample * {c} + channel)[None, :] * positions + position[:, None]"
    names = [*arguments(region, direction), "ROWS: tl.constexpr", "COLS: tl.constexpr"]
    return [
        "@triton.jit",
        f"def {region.kernel(direction)}(",
        *(f"    {name}," for name in names),
        "):",
        _DORMANT.rstrip("\n"),
        "    blocks = tl.cdiv(positions, ROWS)",
        "    sample = (tl.program_id(0) // blocks).to(tl.int64)",
        "    position = (tl.program_id(0) % blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]",
        "    channel = tl.arange(0, COLS)  # [COLS]",
        f"    inside = (position < positions)[:, None] & (channel < {c})[None, :]  # [ROWS, COLS]",
        f"    at = {at}",
        *(line for one in region.inputs for line in _load_input(one, region)),
        *(
            f"    p{place} = tl.load(p{place}_ptr + channel, mask=channel < {c}, other=0).to(tl.float32)[None, :]"
            for place in region.vectors
        ),
    ]


def _load_input(one: Outside, region: Region) -> list[str]:
    name, narrow = f"v{one.value}", one.channels != region.channels
    if one.per_sample and narrow:
        return [f"    {name} = tl.load({name}_ptr + sample).to(tl.float32)"]
    if one.per_sample:
        where = f"sample * {region.channels} + channel, mask=channel < {region.channels}"
        return [f"    {name} = tl.load({name}_ptr + {where}, other=0).to(tl.float32)[None, :]"]
    if narrow:  # one channel: positions are neighbours in any layout
        where = "sample * positions + position, mask=position < positions"
        return [f"    {name} = tl.load({name}_ptr + {where}, other=0).to(tl.float32)[:, None]"]
    return [f"    {name} = tl.load({name}_ptr + at, mask=inside, other=0).to(tl.float32)"]


def _values(region: Region, concrete: Plan) -> list[str]:
    """The steps, in canonical order."""
    lines = []
    for at in region.steps:
        lines += [f"    {line}" for line in _rule(at, concrete).forward(_names(at, region, concrete))]
    return lines


def _adjoints(region: Region, concrete: Plan) -> list[str]:
    """Gradients of every value, last step first; those of outputs are there."""
    lines: list[str] = []
    known = {f"d{value}" for value in region.outputs}
    for at in reversed(region.steps):
        step, names = concrete.form.steps[at - 1], _names(at, region, concrete)
        adjoint = _rule(at, concrete).backward(names)
        lines += [f"    {line}" for line in adjoint.lines]
        shares = [(f"d{i}", share) for i, share in zip(step.inputs, adjoint.inputs, strict=True)]
        shares += [
            (f"dp{place}", f"tl.sum(tl.where(inside, {share}, 0.0), axis=0)")
            for place, share in zip(step.parameters, adjoint.parameters, strict=True)
            if share
        ]
        for target, share in shares:
            lines.append(f"    {target} = {target} + {share}" if target in known else f"    {target} = {share}")
            known.add(target)
    return lines


def _input_gradient(one: Outside, region: Region) -> list[str]:
    d, narrow = f"d{one.value}", one.channels != region.channels
    if not (one.per_sample or narrow):
        return [_store(f"{d}_ptr", d)]
    masked = f"tl.where(inside, {d}, 0.0)"
    if one.per_sample and narrow:
        return [f"    tl.store({d}_sums_ptr + tl.program_id(0), tl.sum(tl.sum({masked}, axis=1), axis=0))"]
    if one.per_sample:
        return [f"    {d} = tl.sum({masked}, axis=0)", *_sums(f"{d}_sums_ptr", d, region.channels)]
    target = f"{d}_ptr"
    return [
        f"    {d} = tl.sum({masked}, axis=1)",
        f"    tl.store({target} + sample * positions + position, {d}.to({target}.dtype.element_ty), "
        "mask=position < positions)",
    ]


def _sums(pointer: str, value: str, channels: int) -> list[str]:
    """Write a [COLS] row of partial sums, one per program."""
    where = f"tl.program_id(0).to(tl.int64) * {channels} + channel"
    return [f"    tl.store({pointer} + {where}, {value}, mask=channel < {channels})"]


def _store(pointer: str, value: str) -> str:
    return f"    tl.store({pointer} + at, {value}.to({pointer}.dtype.element_ty), mask=inside)"


def _rule(at: int, concrete: Plan) -> Rule:
    return RULES[concrete.form.steps[at - 1].node.operator]


def _names(at: int, region: Region, concrete: Plan) -> Names:
    step = concrete.form.steps[at - 1]
    return Names(
        at,
        tuple(f"v{i}" for i in step.inputs),
        tuple(f"p{place}" for place in step.parameters),
        region.channels,
        concrete.bindings[at - 1].attributes,
    )
