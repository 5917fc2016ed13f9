"""Small runs for the nursery: hosts whose structure allows one way or another of trying several candidates at once."""

import torch
import torch.nn.functional as F
from torch import nn

from esper.blueprint.canonical import blueprint_id
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import SeedId
from esper.kasmina.nursery.trial import Candidate
from esper.tolaria.replay import Replay
from tests import builders


class Residual(nn.Module):
    """A later layer sees what came before the site, so that the site's rows alone cannot go on."""

    def __init__(self, *, norm=False, dropout=0.0):
        super().__init__()
        self.into, self.site = nn.Linear(5, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(6, 3)

    def forward(self, x):
        h = torch.tanh(self.into(x))
        return self.out(self.drop(self.norm(h + torch.tanh(self.site(h)))))


class Centred(nn.Module):
    """Subtracts the mean over the batch, in train and in eval: examples see each other, and no class says so."""

    def __init__(self):
        super().__init__()
        self.site, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.site(x)
        return self.out(torch.tanh(h - h.mean(0)))


def plain():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))


def regression(make, **changes):
    return builders.task(make, **changes)


def pictures(**changes):
    def batch(step, count=12):
        x = builders.images(count, seed=500 + step)
        return x, (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 0, 0] > 1).long()

    slices = {"select": 1, "judge": 2, "test": 3}
    return builders.task(
        builders.conv_net,
        name="pictures",
        batch=batch,
        held_out=lambda name: [batch(-10 * slices[name], 15)],
        loss=lambda out, b: F.cross_entropy(out, b[1], reduction="none"),
        score=lambda out, b: (out.argmax(1) == b[1]).float(),
        **changes,
    )


def reading(*, batch_first=True, dropout=0.0, **changes):
    def batch(step, count=6):
        ids = builders.ids(count, 8, seed=700 + step)
        return (ids, ids) if batch_first else (ids.T.contiguous(), ids)

    def loss(out, b):
        scores = out if batch_first else out.transpose(0, 1)
        return (
            F.cross_entropy(scores[:, :-1].flatten(0, 1), b[1][:, 1:].flatten(), reduction="none")
            .view(len(b[1]), -1)
            .mean(1)
        )

    return builders.task(
        lambda: builders.Reader(batch_first=batch_first, dropout=dropout),
        name="reading",
        batch=batch,
        held_out=lambda name: [batch(-len(name), 9)],
        loss=loss,
        **changes,
    )


# (make task, site, the mode that fits it)
HOSTS = {
    "sequential": (lambda: regression(plain), "2", "site"),
    "pictures": (pictures, "3", "site"),
    "residual": (lambda: regression(Residual), "site", "input"),
    "transformer": (reading, "fc1", "input"),
    "attention": (reading, "attention", "input"),
    "batch_norm": (lambda: regression(lambda: Residual(norm=True)), "site", "serial"),
    "centred": (lambda: regression(Centred), "site", "serial"),
    "sequence_first": (lambda: reading(batch_first=False), "fc1", "serial"),
}


def run_of(task, *sites):
    return Replay(task, site_names=sites)


def kernel_at(run, site, title="bottleneck_mlp"):
    graph = builders.graph(title)
    return Kernel(f"{title}@{site}", blueprint_id(graph), graph, run.sites[site].interface)


def candidate(run, site, slot=0, *, title="bottleneck_mlp", weights_seed=None, **options):
    seed = weights_seed if weights_seed is not None else 100 + slot
    return Candidate(SeedId(site, slot), kernel_at(run, site, title), seed, **options)


def host_state(run):
    """Everything of a host that a candidate might have touched."""
    return {
        "model": builders.state_of(run.model),
        "optimizer": {
            f"{name}.{key}": torch.as_tensor(value).clone()
            for name, parameter in run.model.named_parameters()
            for key, value in run.optimizer.state.get(parameter, {}).items()
            if value is not None
        },
        "rng": torch.get_rng_state(),
        "step": run.step,
    }


def same_host(first, second):
    assert first["step"] == second["step"]
    assert torch.equal(first["rng"], second["rng"])
    for part in ("model", "optimizer"):
        assert first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), (part, name)
    return True
