"""A clock that only calls move, and a bench that says what it is told."""

from bench.registry import Bench
from bench.row import Target, make_row


class FakeClock:
    """Seconds. `arm(cost_s)` is a call that takes so long, give or take a share of it that `noise` draws."""

    def __init__(self, noise=None, spread=0.0):
        self.now = 0.0
        self.noise = noise
        self.spread = spread

    def __call__(self):
        return self.now

    def arm(self, cost_s):
        def call():
            drawn = self.noise.uniform(-self.spread, self.spread) if self.noise else 0.0
            self.now += cost_s * (1 + drawn)

        return call


def row(value=1.0, target=None, aa=None, **changes):
    fields = {"bench": "fake", "case": "one", "metric": "ratio", "unit": "ratio"} | changes
    return make_row(
        fields["bench"],
        fields["case"],
        fields["metric"],
        value,
        fields["unit"],
        aa=aa,
        target=target and Target(target),
    )


def bench_of(*rows, gpu=False, long=False, name="fake"):
    return Bench(name, "A bench for tests.", lambda options: iter(rows), gpu, long)
