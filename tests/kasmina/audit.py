"""What must hold of model, table and optimiser between any two requests, and whether a request changed anything."""

import copy
from dataclasses import dataclass

import torch

from esper.host.forward import grafts_of
from esper.kasmina.lifecycle import IN_HOST, State
from esper.kasmina.table import Seed


@dataclass(frozen=True)
class Picture:
    """Everything a refused request must leave as it was."""

    tensors: dict
    modules: list
    attributes: list
    seeds: list
    layout: list
    groups: list
    state: dict
    removed: set

    @classmethod
    def of(cls, executor, optimizer):
        model, rows = executor.model, executor.table.layout
        return cls(
            {name: value.clone() for name, value in model.state_dict().items()},
            [(name, id(module)) for name, module in model.named_modules()],
            [sorted(vars(module)) for module in model.modules()],
            [copy.copy(seed) for seed in executor.table],
            [t.tolist() for t in (rows.lifecycle_states, rows.alpha_blend, rows.state_steps, rows.error_counts)],
            [[id(p) for p in group["params"]] for group in optimizer.param_groups],
            {
                id(p): {k: v.clone() if torch.is_tensor(v) else v for k, v in s.items()}
                for p, s in optimizer.state.items()
            },
            set(executor.removed),
        )

    def same_as(self, other):
        for field in ("modules", "attributes", "seeds", "layout", "groups", "removed"):
            assert getattr(self, field) == getattr(other, field), field
        assert same_tensors(self.tensors, other.tensors)
        assert self.state.keys() == other.state.keys()
        assert all(same_tensors(self.state[key], other.state[key]) for key in self.state)
        return True


def same_tensors(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(a, second[key]) if torch.is_tensor(a) else a == second[key] for key, a in first.items()
    )


def sound(executor, optimizer, *, locked=()):
    """The invariants. Seeds in `locked` wait for the host that a rollback puts back."""
    table, model = executor.table, executor.model
    rows = table.layout
    assert rows.lifecycle_states.tolist() == [int(seed.state) for seed in table]
    assert torch.equal(rows.alpha_blend, torch.tensor([seed.alpha for seed in table], dtype=torch.float32))
    assert rows.state_steps.tolist() == [seed.state_step for seed in table]
    assert rows.error_counts.tolist() == [seed.errors for seed in table]

    inside = {seed.id for seed in table if seed.state in IN_HOST and not seed.folded}
    assert set(executor.grafts) == inside | set(locked)
    for name, site in executor.sites.items():
        carried = grafts_of(site.module)
        assert carried == {seed.slot: graft for seed, graft in executor.grafts.items() if seed.site == name}
        assert ("forward" in vars(site.module)) == bool(carried)
        assert [k for k in site.module._modules if k.startswith("esper_")] or not carried
    for seed_id, graft in executor.grafts.items():
        seed: Seed = table[seed_id]
        assert graft.settled == (seed.state is State.FOSSILIZED)
        assert graft.settled or graft.alpha.data_ptr() == table.alpha_view(seed).data_ptr()
        assert (seed.span, seed.strategy) == (graft.span, graft.strategy)

    trained = [id(p) for group in optimizer.param_groups for p in group["params"]]
    learning = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(trained) == len(set(trained)) and set(trained) == learning
    assert {id(p) for p in optimizer.state} <= learning

    for seed in table:
        assert 0 <= seed.alpha <= 1
        assert seed.alpha == 0 or seed.state in IN_HOST
        assert seed.alpha == 1 or seed.held or seed.state not in IN_HOST - {State.GRAFTING}
    return True
