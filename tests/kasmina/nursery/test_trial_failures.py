"""A candidate that fails ends its own trial and nothing else."""

import math
from dataclasses import replace

import pytest
from torch import nn

from esper.kasmina.nursery.trial import run_trial
from tests import builders
from tests.kasmina.nursery.runs import HOSTS, Residual, candidate, plain, regression, run_of
from tests.kasmina.nursery.trials import OPTIONS, same_curve, three, tried


class Fails(nn.Module):
    """A body that misbehaves from some call on."""

    def __init__(self, inner, after, how):
        super().__init__()
        self.inner, self.after, self.how, self.calls = inner, after, how, 0
        self.interface, self.graph = inner.interface, inner.graph

    def forward(self, h):
        self.calls += 1
        return self.inner(h) if self.calls <= self.after else self.how(h)

    def ordered_parameters(self):
        return self.inner.ordered_parameters()


class Cursed:
    """A kernel whose bodies fail."""

    def __init__(self, kernel, after, how):
        self.kernel, self.after, self.how = kernel, after, how

    def __getattr__(self, name):
        return getattr(self.kernel, name)

    def body(self, *arguments):
        return Fails(self.kernel.body(*arguments), self.after, self.how)


def out_of_luck(h):
    raise ValueError("out of luck")


@pytest.mark.parametrize("name", ["sequential", "residual", "batch_norm"])
@pytest.mark.parametrize(
    ("after", "how", "said"),
    [
        (0, out_of_luck, "raised ValueError: out of luck"),
        (0, lambda h: h[:, :2], "returned [16, 2] on cpu for [16, 6] on cpu"),
        (4, out_of_luck, "raised ValueError: out of luck"),
        (9, out_of_luck, "raised ValueError: out of luck"),
        (3, lambda h: h * math.nan, "its held-out loss is nan after 3 steps"),
        (0, lambda h: h * math.inf, "returned a value that is not finite"),
    ],
)
def test_a_failing_candidate_ends_its_own_trial_alone(name, after, how, said):
    make, site, _ = HOSTS[name]
    first, second, third = three(site)
    run = run_of(make(), site)
    made = [candidate(run, s, slot, **changes) for s, slot, changes in (first, second, third)]
    made[1] = replace(made[1], kernel=Cursed(made[1].kernel, after, how))
    outcome = run_trial(run, made, OPTIONS)
    assert outcome.curves[1].failure.startswith(said) and outcome.curves[1].gain == -math.inf
    for slot, spec in ((0, first), (2, third)):
        _, alone = tried(make(), [spec])
        assert outcome.curves[slot].failure == ""
        assert same_curve(outcome.curves[slot], alone.curves[0])


def test_when_every_candidate_fails_the_trial_still_ends():
    run = run_of(regression(plain), "2")
    made = candidate(run, "2")
    outcome = run_trial(run, [replace(made, kernel=Cursed(made.kernel, 2, out_of_luck))], OPTIONS)
    assert outcome.curves[0].failure and outcome.host_steps == OPTIONS.steps


@pytest.mark.parametrize("call", range(4, 22, 4))
def test_a_failure_that_is_nobodys_is_not_swallowed(call):
    class Stumbles(Residual):
        calls = 0

        def forward(self, x):
            Stumbles.calls += 1
            if Stumbles.calls == call:
                raise RuntimeError("the host stumbled")
            return super().forward(x)

    # one by one: in search of a mode a host may fail, and there it means that the mode does not fit
    with pytest.raises(RuntimeError, match="the host stumbled"):
        tried(regression(lambda: nn.Sequential(Stumbles(norm=True))), [("0.site", 0, {})])


def test_a_candidate_the_host_cannot_take_ends_its_own_trial():
    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.site, self.out = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x):
            h = self.site(x)
            if h.abs().max() > 1000:
                raise OverflowError("too large")
            return self.out(h)

    run = run_of(regression(Strict), "site")
    good, bad = candidate(run, "site", 0), candidate(run, "site", 1)
    bad = replace(bad, kernel=Cursed(bad.kernel, 0, lambda h: h * 0 + 1e6))
    outcome = run_trial(run, [good, bad], replace(OPTIONS, steps=2))
    assert outcome.curves[1].failure == "raised OverflowError: too large"


def test_a_kernel_that_does_not_fit_the_site_ends_its_own_trial():
    run = run_of(regression(plain), "2")
    good, bad = candidate(run, "2", 0), candidate(run, "2", 1)
    bad = replace(bad, kernel=replace(bad.kernel, interface=builders.interface(channels=9)))
    outcome = run_trial(run, [good, bad], OPTIONS)
    assert outcome.curves[0].points and "[20, 6]" not in outcome.curves[1].failure
    assert outcome.curves[1].failure.startswith("raised RuntimeError")


def test_a_blueprint_that_cannot_be_lowered_here_ends_its_own_trial():
    run = run_of(regression(plain), "2")
    outcome = run_trial(run, [candidate(run, "2", 0), candidate(run, "2", 1, title="conv3")], OPTIONS)
    assert outcome.curves[0].points
    assert outcome.curves[1].failure.startswith("raised InvalidBlueprint: node 'near': conv needs positions")


def test_fixed_functions_are_measured_as_they_are():
    run = run_of(regression(plain), "2")
    outcome = run_trial(run, [candidate(run, "2", 0, title="fixed"), candidate(run, "2", 1)], OPTIONS)
    assert [curve.failure for curve in outcome.curves] == ["", ""]
    assert all(curve.points for curve in outcome.curves)
    alone = run_of(regression(plain), "2")
    assert same_curve(run_trial(alone, [candidate(alone, "2", 0, title="fixed")], OPTIONS).curves[0], outcome.curves[0])
