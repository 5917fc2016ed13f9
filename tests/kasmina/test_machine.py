"""Random requests, legal and illegal, against one executor: nothing illegal is reachable, a refusal changes nothing."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from esper.errors import EsperError
from esper.host.graft import Strategy
from esper.kasmina.lifecycle import ALLOWED, LIVE, SeedId, State
from tests import builders
from tests.kasmina.audit import Picture, sound

SEEDS = [SeedId(site, slot) for site in ("0", "2") for slot in (0, 1)]
seeds = st.sampled_from(SEEDS)
VISITED: set[State] = set()
TITLES = ("bottleneck_mlp", "low_rank", "fixed")


class Requests(RuleBasedStateMachine):
    """Every public method of Executor, on any seed, at any time."""

    @initialize(max_live=st.sampled_from([1, 4]))
    def begin(self, max_live):
        model = builders.seeded(builders.perceptron)
        self.executor = builders.executor(model, ["0", "2"], max_live=max_live, embargo_steps=3)
        self.optimizer = builders.adam(model)
        self.foreign = builders.adam(builders.perceptron())
        self.step = 1
        self.serial = 0
        self.x = builders.rows()

    def ask(self, request):
        """Make a request; if it is refused, nothing may have changed."""
        before = Picture.of(self.executor, self.optimizer)
        self.executor.table.drain()
        try:
            request()
        except EsperError as error:
            assert str(error)
            assert Picture.of(self.executor, self.optimizer).same_as(before)
            assert self.executor.table.drain() == []
            return False
        for moved in self.executor.table.moved:
            assert moved.target in ALLOWED[moved.source]
        return True

    @rule(
        chosen=st.lists(seeds, min_size=1, max_size=3),
        title=st.sampled_from(TITLES),
        span=st.sampled_from([None, (1, 4), (4, 1), (0, 99)]),
        strategy=st.sampled_from(Strategy),
    )
    def germinate(self, chosen, title, span, strategy):
        self.serial += 1
        assignments = [
            builders.assignment(s, artifact_id=f"{title}-{self.serial}-{s}", title=title, span=span, strategy=strategy)
            for s in chosen
        ]
        dormant = all(self.executor.table[s].state is State.DORMANT for s in chosen)
        done = self.ask(lambda: self.executor.germinate(assignments, f"e{self.serial}", self.step, "machine"))
        assert done == (dormant and len(set(chosen)) == len(chosen) and span in (None, (1, 4)))

    @rule(seed=seeds, title=st.sampled_from(TITLES), strategy=st.sampled_from(Strategy), steps=st.integers(1, 6))
    def hurry(self, seed, title, strategy, steps):
        """The natural next steps of one seed: random requests alone seldom get far."""
        for _ in range(steps):
            record = self.executor.table[seed]
            if record.state is State.GRAFTING:
                self.train(1)
            elif record.state is State.DORMANT:
                artifact = f"{title}-h{self.step}-{seed}"
                self.ask(
                    lambda artifact=artifact: self.executor.germinate(
                        [builders.assignment(seed, artifact_id=artifact, strategy=strategy)], "h", self.step, "hurry"
                    )
                )
            elif not self.ask(lambda record=record: self.next_step(seed, record)):
                break

    def next_step(self, seed, record):
        executor, now, artifact = self.executor, self.step, record.artifact_id
        if record.state is State.LOADING:
            title = artifact.split("-")[0]
            executor.loaded(seed, builders.kernel_for(executor, seed, title=title, artifact_id=artifact), now)
        elif record.state is State.TRAINING:
            executor.insert(seed, self.optimizer, now, 1, "hurry")
        elif record.state is State.FINE_TUNING:
            executor.fossilise(seed, self.optimizer, now, "hurry")
        else:
            target = State.FINE_TUNING if record.state is State.EVALUATING else State.EVALUATING
            executor.advance(seed, target, now, "hurry")

    @rule(seed=seeds, fits=st.booleans())
    def loaded(self, seed, fits):
        record = self.executor.table[seed]
        title = record.artifact_id.split("-")[0] or "bottleneck_mlp"
        kernel = builders.kernel_for(self.executor, seed, title=title, artifact_id=record.artifact_id)
        if not fits:
            kernel = builders.kernel(builders.interface(channels=17), title=title, artifact_id=record.artifact_id)
        was = record.state
        done = self.ask(lambda: self.executor.loaded(seed, kernel, self.step))
        assert done == (was is State.LOADING)
        if done:
            assert record.state is (State.TRAINING if fits else State.CULLED)

    @rule(seed=seeds)
    def a_kernel_of_another_seed(self, seed):
        kernel = builders.kernel_for(self.executor, seed, artifact_id="foreign")
        assert not self.ask(lambda: self.executor.loaded(seed, kernel, self.step))

    @rule(seed=seeds)
    def load_failed(self, seed):
        was = self.executor.table[seed].state
        assert self.ask(lambda: self.executor.load_failed(seed, "no", self.step)) == (was is State.LOADING)

    @rule(seed=seeds)
    def cancel(self, seed):
        was = self.executor.table[seed].state
        done = self.ask(lambda: self.executor.cancel(seed, self.step, "machine"))
        assert done == (was in (State.LOADING, State.TRAINING))

    @rule(seed=seeds, ramp_steps=st.integers(0, 3), foreign=st.sampled_from([False, False, True]))
    def insert(self, seed, ramp_steps, foreign):
        was = self.executor.table[seed].state
        room = len(self.executor.table.in_states(LIVE)) < self.executor.max_live
        optimizer = self.foreign if foreign else self.optimizer
        model = self.executor.model.eval()
        before = model(self.x)
        done = self.ask(lambda: self.executor.insert(seed, optimizer, self.step, ramp_steps, "machine"))
        assert done == (was is State.TRAINING and room and not foreign)
        assert torch.equal(model(self.x), before)  # at alpha 0 nothing changes

    @rule(seed=seeds, state=st.sampled_from(State))
    def advance(self, seed, state):
        was = self.executor.table[seed].state
        done = self.ask(lambda: self.executor.advance(seed, state, self.step, "machine"))
        assert done == (
            (was, state) in ((State.STABILIZATION, State.EVALUATING), (State.EVALUATING, State.FINE_TUNING))
        )

    @rule(seed=seeds, alpha=st.sampled_from([0.0, 0.5, 1.0, 1.5, -1.0]))
    def hold_alpha(self, seed, alpha):
        was = self.executor.table[seed].state
        assert self.ask(lambda: self.executor.hold_alpha(seed, alpha)) == (was in LIVE and 0 <= alpha <= 1)

    @rule(seed=seeds, freeze=st.booleans())
    def fossilise(self, seed, freeze):
        record = self.executor.table[seed]
        was, alpha, fixed = record.state, record.alpha, record.parameter_count == 0
        model = self.executor.model.eval()
        before = model(self.x)
        done = self.ask(lambda: self.executor.fossilise(seed, self.optimizer, self.step, "machine", freeze=freeze))
        ready = was is State.FINE_TUNING or (was is State.EVALUATING and fixed)
        assert done == (ready and alpha == 1)
        torch.testing.assert_close(model(self.x), before, rtol=1e-4, atol=1e-5)

    @rule(seed=seeds)
    def cull(self, seed):
        record = self.executor.table[seed]
        was, folded = record.state, record.folded
        done = self.ask(lambda: self.executor.cull(seed, self.optimizer, self.step, "machine"))
        assert done == (State.CULLED in ALLOWED[was] and not folded)

    @rule(seed=seeds, foreign=st.booleans())
    def undo_removal(self, seed, foreign):
        optimizer = self.foreign if foreign else self.optimizer
        self.ask(lambda: self.executor.undo_removal(seed, optimizer))

    @rule(seed=seeds)
    def remove_and_undo_is_no_change_of_function(self, seed):
        record = self.executor.table[seed]
        if record.state is not State.FOSSILIZED or record.folded:
            return
        model = self.executor.model.eval()
        before, keys = model(self.x), set(model.state_dict())
        assert self.ask(lambda: self.executor.cull(seed, self.optimizer, self.step, "machine"))
        assert self.ask(lambda: self.executor.undo_removal(seed, self.optimizer))
        assert torch.equal(model(self.x), before) and set(model.state_dict()) == keys

    @rule(seed=seeds)
    def release(self, seed):
        was = self.executor.table[seed].state
        done = self.ask(lambda: self.executor.release(seed, self.step, "machine"))
        assert done == (was is State.ROLLED_BACK)

    @rule(seed=seeds)
    def roll_back(self, seed):
        """As tolaria does it: the offender is locked, and the host made again without it."""
        was = self.executor.table[seed].state
        if self.ask(lambda: self.executor.lock(seed, self.step, "machine")):
            specs = [spec for spec in self.executor.specs() if spec.seed != seed]
            weights = {s: copy.deepcopy(self.executor.grafts[s.seed].state_dict()) for s in specs if not s.folded}
            self.executor.regrow(specs, [], self.optimizer)
            for spec, state in weights.items():
                self.executor.grafts[spec.seed].load_state_dict(state)
        assert (self.executor.table[seed].state is State.ROLLED_BACK) or was is State.DORMANT

    @rule()
    def a_host_made_again_from_its_specs_is_the_same(self):
        model = self.executor.model.eval()
        before, state = model(self.x), builders.state_of(model)
        self.executor.regrow(self.executor.specs(), [copy.copy(s) for s in self.executor.table], self.optimizer)
        assert model.state_dict().keys() == state.keys()
        model.load_state_dict(state)
        assert torch.equal(model(self.x), before)

    @rule()
    def an_unknown_kernel_does_not_tear_the_host_down(self):
        from dataclasses import replace

        specs = [replace(spec, artifact_id="unknown") for spec in self.executor.specs() if not spec.folded]
        if specs:
            assert not self.ask(lambda: self.executor.regrow(specs, [], self.optimizer))

    @rule(steps=st.integers(1, 3))
    def train(self, steps):
        for _ in range(steps):
            builders.train(self.executor.model, self.optimizer, [self.x])
            self.step += 1
            self.executor.step_ramps(self.step)
        assert self.executor.take_faults() == []
        self.executor.end_embargoes(self.step)

    @rule(seed=seeds)
    def stir(self, seed):
        if seed in self.executor.grafts and not self.executor.table[seed].frozen:
            builders.stir(self.executor.grafts[seed], seed=self.step, scale=0.1)

    @rule(seed=seeds)
    def fail(self, seed):
        graft = self.executor.grafts.get(seed)
        if graft is None or graft.settled:
            return
        errors = self.executor.table[seed].errors
        graft.use_form(lambda h, *_: h[:1])
        self.executor.model(self.x)
        graft.use_form(None)
        ((faulty, said),) = self.executor.take_faults()
        assert faulty == seed and said.startswith("returned [1, ")
        assert self.executor.table[seed].errors == errors
        self.executor.charge(seed)
        assert self.executor.table[seed].errors == errors + 1

    @invariant()
    def everything_agrees(self):
        if hasattr(self, "executor"):
            assert sound(self.executor, self.optimizer)
            VISITED.update(seed.state for seed in self.executor.table)


def run(examples, steps, **options):
    VISITED.clear()
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Requests,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, **options
        ),
    )

    assert set(State) - {State.GERMINATED} == VISITED  # GERMINATED lasts no longer than the request


def test_random_requests():
    run(examples=100, steps=40, derandomize=True)


@pytest.mark.slow
def test_many_random_requests():
    run(examples=400, steps=80)
