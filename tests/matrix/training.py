"""A small model in training with one seed in it, and what must hold of every step."""

import contextlib
import copy
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from esper.host.graft import Graft
from esper.kasmina.table import Seed
from tests import builders
from tests.host.optimizers import same_state, state_of
from tests.matrix.covering import Row
from tests.matrix.factors import BRANCHES, HOSTS, SCHEDULERS, Scheduler, fresh_optimizer, make_optimizer
from tests.matrix.steps import CLIP_NORM, Stepping


class Training:
    """Of one row: the host, its optimiser and scheduler, and a way to take a step."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.host, self.branch = HOSTS[row["host"]], BRANCHES[row["branch"]]
        self.model = builders.seeded(self.host.make)
        self.executor = builders.executor(self.model, self.host.site, self.host.batch(0))
        self.optimizer, self.scheduler = self._optimizer_and_scheduler(self.model)
        # the same without a model that could grow: what learning rates would be
        self.ungrown = self._optimizer_and_scheduler(builders.seeded(self.host.make))
        self.stepping = Stepping(row["step"], self.model)
        self.seed = builders.first_seed(self.executor)
        self.now = 0
        self.dtype, self.memory_format = torch.float32, torch.contiguous_format
        self.stepped: list[Tensor] = []  # parameters of grafts that have been updated before
        self.gone: list[Graft] = []  # grafts taken out

    def _optimizer_and_scheduler(self, model: nn.Module) -> tuple[Optimizer, Scheduler]:
        optimizer = make_optimizer(self.row["optimizer"], model)
        return optimizer, SCHEDULERS[self.row["scheduler"]](optimizer)

    @property
    def record(self) -> Seed:
        return self.executor.table[self.seed]

    @property
    def graft(self) -> Graft | None:
        return self.executor.grafts.get(self.seed)

    def batch(self, seed: int = 0) -> Tensor:
        x = self.host.batch(seed).to(self.dtype)
        return x.contiguous(memory_format=self.memory_format) if x.ndim == 4 else x

    def convert(self, dtype: torch.dtype) -> None:
        """The model, and the optimiser's moments with it: torch casts them when it loads them."""
        self.model.to(dtype)
        self.dtype = dtype
        self.reload_optimizer()

    def reload_optimizer(self) -> None:
        self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))

    # Training

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.train_step()

    def train_step(self) -> None:
        """One step: finite, newborns updated as by a fresh optimiser, everything moves that should and nothing else."""
        self.now += 1
        self.model.train()
        loss = self.stepping.backward(self.batch(self.now))
        assert torch.isfinite(torch.tensor(loss))
        self.stepping.prepare(self.optimizer)
        if self.row["step"] == "clip":
            self._is_clipped()
        with self._newborns_as_in_a_fresh_optimizer(), self._moves_what_learns():
            self.stepping.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=self.row["step"] != "grads_kept")
        self._schedule()
        self.executor.step_ramps(self.now)
        assert self.executor.take_faults() == []

    def _is_clipped(self) -> None:
        """Over host and graft together, as the optimiser holds them."""
        grads = [p.grad for g in self.optimizer.param_groups for p in g["params"] if p.grad is not None]
        assert float(torch.linalg.vector_norm(torch.stack([g.double().norm() for g in grads]))) <= 1.02 * CLIP_NORM

    @contextlib.contextmanager
    def _newborns_as_in_a_fresh_optimizer(self) -> Iterator[None]:
        """Values and state after a newborn's first step are those of an optimiser that holds nothing else."""
        known = {id(p) for p in self.stepped}
        newborns = [p for p in self.graft.parameters() if id(p) not in known] if self.graft is not None else []
        newborns = [p for p in newborns if p.requires_grad]
        if not newborns:
            yield
            return
        group = next(g for g in self.optimizer.param_groups if any(p is newborns[0] for p in g["params"]))
        twins = [p.detach().clone().requires_grad_() for p in newborns]
        for twin, newborn in zip(twins, newborns, strict=True):
            assert newborn.grad is not None
            twin.grad = newborn.grad.clone()
        fresh = fresh_optimizer(self.row["optimizer"], group, twins)
        yield
        fresh.step()
        assert all(torch.equal(a, b) for a, b in zip(newborns, twins, strict=True))
        assert same_state(state_of(self.optimizer, newborns), state_of(fresh, twins))
        self.stepped += newborns

    @contextlib.contextmanager
    def _moves_what_learns(self) -> Iterator[None]:
        grown = [] if self.graft is None else list(self.graft.parameters())
        host = [p for p in self.model.parameters() if all(p is not q for q in grown)]
        gone = [p for graft in self.gone for p in graft.parameters()]
        pulled = any(p.grad is not None and float(p.grad.abs().max()) > 0 for p in grown)
        before = {id(p): p.detach().clone() for p in (*grown, *host, *gone)}
        yield

        def moved(p: Tensor) -> bool:
            return not torch.equal(p, before[id(p)])

        assert not any(moved(p) for p in (*grown, *host, *gone) if not p.requires_grad)
        assert not any(moved(p) for p in gone)
        if self.dtype.itemsize > 2:  # 16-bit parameters round a small update away
            assert any(moved(p) for p in host if p.requires_grad)
            assert not pulled or any(moved(p) for p in grown)
            assert pulled or not grown or self.record.alpha == 0 or self.record.frozen
        assert all(torch.isfinite(p).all() for p in (*grown, *host))

    def _schedule(self) -> None:
        """The scheduler's state and every group's settings are those of a run that never grew."""
        optimizer, scheduler = self.ungrown
        with warnings.catch_warnings():
            # the optimiser of the run that never grew holds the settings and takes no step
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for each in (self.scheduler, scheduler):
                each.step(*([1.0] if self.row["scheduler"] == "plateau" else []))
        assert self.scheduler.state_dict() == scheduler.state_dict()
        assert len(self.scheduler.get_last_lr()) == len(optimizer.param_groups)
        assert [settings_of(g) for g in self.optimizer.param_groups] == [settings_of(g) for g in optimizer.param_groups]


def settings_of(group: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in group.items() if key != "params"}
