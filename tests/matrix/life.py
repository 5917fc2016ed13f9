"""One row of the matrix lived through: a seed is led on and ended, with what must hold checked after each move."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from esper.errors import EsperError, IllegalTransition, PreconditionFailed
from esper.kasmina.lifecycle import IN_HOST, State
from tests import builders
from tests.host.optimizers import same_state, state_of
from tests.kasmina.audit import Picture, sound
from tests.matrix.expected import agrees, as_spliced
from tests.matrix.training import Training


class Life(Training):
    """The seed's life in a model that trains."""

    def lead(self, state: State) -> None:
        with self.untouched():
            branch = self.branch
            builders.lead(
                self.executor,
                state,
                self.optimizer,
                title=branch.title,
                strategy=branch.strategy,
                span=branch.span,
                step=self.now,
            )
        assert self.record.state is state

    def walk(self, target: State) -> None:
        """On to a later state by the lifecycle's own moves, training where it is trained."""
        for _ in range(20):
            if self.record.state is target:
                return
            with self.untouched():
                self._next()
            self.holds()
            if self.record.state in IN_HOST:
                self.train(2)
            if self.record.state is State.GRAFTING:
                builders.stir(self.executor.grafts[self.seed])  # as if it had trained for long: away from zero
        raise AssertionError(f"{self.record.state.name} does not lead to {target.name}")

    def _next(self) -> None:
        executor, seed, branch = self.executor, self.seed, self.branch
        kernel = lambda: builders.kernel_for(executor, seed, title=branch.title)  # noqa: E731
        assigned = builders.assignment(seed, strategy=branch.strategy, span=branch.span)
        moves: dict[State, Callable[[], object]] = {
            State.DORMANT: lambda: executor.germinate([assigned], f"event {self.now}", self.now, "on"),
            State.GERMINATED: lambda: executor.cancel(seed, self.now, "no kernel was assigned"),
            State.LOADING: lambda: executor.loaded(seed, kernel(), self.now),
            State.TRAINING: self.insert,
            State.GRAFTING: lambda: executor.step_ramps(self.now + 100),
            State.STABILIZATION: lambda: executor.advance(seed, State.EVALUATING, self.now, "on"),
            State.EVALUATING: lambda: executor.advance(seed, State.FINE_TUNING, self.now, "on"),
            State.FINE_TUNING: self.fossilise,
            State.CULLED: lambda: executor.end_embargoes(self.now + 1000),
            State.CANCELLED: lambda: executor.end_embargoes(self.now + 1000),
            State.ROLLED_BACK: lambda: executor.release(seed, self.now, "on"),
        }
        moves[self.record.state]()

    def insert(self) -> None:
        """At alpha 0 the function is the host's, bit for bit."""
        before = self.evaluated()
        self.executor.insert(self.seed, self.optimizer, self.now, 4, "on")
        assert self.graft is not None and not self.graft.training
        assert torch.equal(self.evaluated(), before)
        # with the site's own parameters, which are vectors where it is a norm
        home = self.optimizer.param_groups[1 if self.row["host"] == "norm" else 0]
        assert {id(p) for p in self.executor.grafts[self.seed].parameters()} <= {id(p) for p in home["params"]}

    def fossilise(self, *, freeze: bool = False) -> None:
        before = self.evaluated()
        self.executor.fossilise(self.seed, self.optimizer, self.now, "on", freeze=freeze)
        agrees(self.evaluated(), before, self)

    def cull(self) -> None:
        graft = self.graft
        with self.untouched():
            self.executor.cull(self.seed, self.optimizer, self.now, "on")
        if graft is not None:
            self.gone.append(graft)
        self.holds()

    def undo_removal(self) -> None:
        with self.untouched():
            self.executor.undo_removal(self.seed, self.optimizer)
        back = self.gone.pop()
        assert self.graft is back and all(p.grad is None for p in back.parameters())
        self.stepped = [p for p in self.stepped if all(p is not q for q in back.parameters())]
        self.holds()

    def refused(self, error: type[EsperError], match: str, request: Callable[[], object]) -> None:
        """By name, and nothing has changed."""
        before = Picture.of(self.executor, self.optimizer)
        with pytest.raises(error, match=match):
            request()
        assert Picture.of(self.executor, self.optimizer).same_as(before)

    def end(self) -> None:
        """Cull, fossilise, freeze, or remove and put back, from whatever state the seed is in."""
        how = self.row["end"]
        if how == "cull" and self.record.state not in IN_HOST:
            self.walk(State.GRAFTING)
        elif how == "freeze" and self.record.state is not State.FOSSILIZED:
            self.walk(State.FINE_TUNING)
        elif how in ("fossilise", "remove"):
            self.walk(State.FOSSILIZED)
        if how == "freeze":
            self._freeze()
        elif how != "fossilise":
            self._take_out()
        self.train(2)
        self.holds()

    def _freeze(self) -> None:
        freeze = lambda: self.fossilise(freeze=True)  # noqa: E731
        if self.record.state is State.FOSSILIZED:
            self.refused(IllegalTransition, "is FOSSILIZED and cannot become FOSSILIZED", freeze)
        else:
            with self.untouched():
                freeze()
        self.holds()

    def _take_out(self) -> None:
        if self.record.folded:
            self.refused(PreconditionFailed, "cannot be taken out again", self.cull)
            return
        self.cull()
        if self.row["end"] == "remove":
            self.train(2)
            # the model may be converted while a fossil is out of it
            self.convert(torch.float64 if self.dtype is torch.float32 else torch.float32)
            self.undo_removal()

    # What must hold

    def evaluated(self, model: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        self.model.eval()
        with torch.no_grad():
            return self.stepping.forward(self.batch(), model)

    def holds(self) -> None:
        as_spliced(self)
        assert sound(self.executor, self.optimizer)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Host parameters and their optimiser state are the same objects, bit for bit; a fold changes its site's."""
        grown = {id(p) for graft in self.executor.grafts.values() for p in graft.parameters()}
        host = [p for p in self.model.parameters() if id(p) not in grown]
        values, moments = [p.detach().clone() for p in host], state_of(self.optimizer, host)
        was_folded = self.record.folded
        yield
        absorbs = self.executor.sites[self.seed.site].module if self.record.folded and not was_folded else None
        its_own = set() if absorbs is None else {id(p) for p in absorbs.parameters() if p.requires_grad}
        present = {id(p) for p in self.model.parameters()}
        assert all(id(p) in present for p in host)
        assert same_state(state_of(self.optimizer, host), moments)
        assert all(torch.equal(p, v) for p, v in zip(host, values, strict=True) if id(p) not in its_own)
