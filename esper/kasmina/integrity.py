"""Does the seed table hold what it can hold, and do its two sides agree? Pure.

The host's records are the truth that decisions read. The device's tensors are written from them and read by kernels.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from esper.kasmina.lifecycle import IN_HOST, SeedId, State
from esper.kasmina.table import Seed, SeedTable, length_of

_STATES = frozenset(State)


@dataclass(frozen=True, slots=True)
class Damage:
    """Seeds with a record that cannot be, and seeds whose device entries are not what their sound record says."""

    impossible: tuple[SeedId, ...] = ()
    stale: tuple[SeedId, ...] = ()


def inspect_table(table: SeedTable, grafted: Collection[SeedId]) -> tuple[Damage, str]:
    """What is damaged, and why; no damage and "" where all is well. `grafted`: seeds with a graft in the model.

    Copies seven tensors [S] and the step from the device, and so waits for it: at decision points only.
    """
    wrong = {seed.id: text for seed in table if (text := _impossible(seed, grafted))}
    # What is impossible cannot always be written as a tensor, so the device is asked about sound records alone.
    sound = [seed for seed in table if seed.id not in wrong]
    differs = {seed.id: text for seed, text in zip(sound, _differences(sound, table), strict=True) if text}
    said = [f"the record of seed {seed_id} has {text}" for seed_id, text in wrong.items()]
    said += [f"the device has {text} for seed {seed_id}" for seed_id, text in differs.items()]
    return Damage(tuple(wrong), tuple(differs)), "; ".join(said)


def likely_state(seed: Seed, settled: bool | None) -> State:
    """The state of a seed whose record cannot be believed. `settled`: of its graft in the model; None: it has none."""
    if settled is not None:
        return State.FOSSILIZED if settled else State.GRAFTING
    if seed.folded:
        return State.FOSSILIZED
    return State.GERMINATED if seed.artifact_id else State.DORMANT


def _impossible(seed: Seed, grafted: Collection[SeedId]) -> str:
    if seed.state not in _STATES:
        return f"state {seed.state!r}, which does not exist"
    inside = seed.state in IN_HOST and not seed.folded
    if inside != (seed.id in grafted):
        return f"state {State(seed.state).name} and {'no' if inside else 'a'} graft in the model"
    if not (math.isfinite(seed.alpha) and 0.0 <= seed.alpha <= 1.0):
        return f"alpha {seed.alpha}, which is not within [0, 1]"
    if seed.state_step < 0 or seed.errors < 0:
        return f"step {seed.state_step} and {seed.errors} errors, which cannot be negative"
    if seed.inserted_step < 0 or seed.ramp_steps < 0:
        return f"a ramp of {seed.ramp_steps} steps from step {seed.inserted_step}, which cannot be negative"
    return ""


def _differences(sound: Sequence[Seed], table: SeedTable) -> list[str]:
    """Per record what the device says instead, or ""."""
    layout = table.layout
    rows = torch.tensor([seed.index for seed in sound], dtype=torch.int64)
    columns = (
        ("state", layout.lifecycle_states, [int(seed.state) for seed in sound]),
        ("alpha", layout.alpha_blend, [seed.alpha for seed in sound]),
        ("step", layout.state_steps, [seed.state_step for seed in sound]),
        ("error count", layout.error_counts, [seed.errors for seed in sound]),
        ("first step of its ramp", layout.ramp_begins, [seed.inserted_step for seed in sound]),
        ("length of its ramp", layout.ramp_steps, [length_of(seed) for seed in sound]),
        ("age", layout.ages, [table.age(seed) for seed in sound]),
    )
    said: list[list[str]] = [[] for _ in sound]
    for name, tensor, recorded in columns:
        found = tensor.cpu()[rows]
        wanted = torch.tensor(recorded, dtype=tensor.dtype)
        for place in (found != wanted).nonzero().flatten().tolist():  # NaN differs from everything
            said[place].append(f"{name} {found[place].item():g} instead of {wanted[place].item():g}")
    step = int(layout.step)
    for place, seed in enumerate(sound):
        if step != table.step and seed.state is State.GRAFTING:  # nothing else goes by it
            said[place].append(f"step {step} of its ramp instead of {table.step}")
    return [", ".join(parts) for parts in said]
