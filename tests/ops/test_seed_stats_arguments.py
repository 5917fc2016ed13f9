"""What seed_stats refuses: the refusal names the argument, the value and the limit, in Python and in the library."""

import pytest
import torch

from esper.errors import InvalidRequest, ShapeMismatch
from esper.ops import backends, seed_stats
from tests.requirements import require

from .seed_stats_cases import table

X = torch.zeros(2, 8)


def call(values=X, stats=None, spans=None, channel_dim=1, decay=0.9):
    seed_stats(values, table(1) if stats is None else stats, spans, channel_dim=channel_dim, decay=decay)


REFUSED = {
    "values dtype": (
        lambda: call(X.int()),
        InvalidRequest,
        "values has dtype torch.int32; supported are torch.float32",
    ),
    "values layout": (lambda: call(X.to_sparse()), InvalidRequest, "values has layout torch.sparse_coo"),
    "channel_dim": (
        lambda: call(channel_dim=2),
        ShapeMismatch,
        r"channel_dim is 2; values \[2, 8\] has dimensions -2 to 1",
    ),
    "no dimension": (lambda: call(torch.tensor(1.0)), ShapeMismatch, "channel_dim is 1"),
    "no spans": (lambda: call(spans=[]), InvalidRequest, "spans is empty"),
    "span": (lambda: call(spans=[(3, 9)]), ShapeMismatch, r"spans\[0\] is \(3, 9\); it must lie in \(0, 8\)"),
    "decay": (lambda: call(decay=1.5), InvalidRequest, "decay is 1.5; it must be 0 to 1"),
    "no decay": (lambda: call(decay=float("nan")), InvalidRequest, "decay is nan"),
    "stats shape": (lambda: call(stats=table(2)), ShapeMismatch, r"stats is \[2, 8\]; it must be \[1, 8\]"),
    "stats dtype": (lambda: call(stats=table(1).double()), InvalidRequest, "stats has dtype torch.float64"),
    "stats device": (lambda: call(stats=table(1).to("meta")), InvalidRequest, "stats is on meta, values on cpu"),
    "stats strides": (
        lambda: call(stats=torch.zeros(8, 2).t(), spans=[(0, 4), (4, 8)]),
        InvalidRequest,
        r"stats has strides \(1, 2\)",
    ),
    "stats gradient": (lambda: call(stats=table(1).requires_grad_()), InvalidRequest, "stats requires a gradient"),
    "overlap": (lambda: call(*overlapping()), InvalidRequest, "stats shares memory"),
}


def overlapping():
    memory = torch.zeros(3, 8)
    return memory[:2], memory[1:2]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_argument_the_value_and_the_limit(name):
    refused, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        refused()


def test_neighbours_in_one_storage_do_not_overlap():
    memory = torch.zeros(3, 8)
    seed_stats(memory[:2], memory[2:], channel_dim=1)


IN_LIBRARY = {
    "values has dtype Int": lambda f: f(X.int(), [0, 8], 1, 0.9, table(1)),
    r"values \[2, 4\] has stride 2 in dimension 1": lambda f: f(X[:, ::2], [0, 4], 1, 0.9, table(1)),
    r"channel_dim is 2, not inside \[0, 2\)": lambda f: f(X, [0, 8], 2, 0.9, table(1)),
    r"spans: slot 0 covers channels \[0, 9\), not inside \[0, 8\)": lambda f: f(X, [0, 9], 1, 0.9, table(1)),
    "spans has 1 entries": lambda f: f(X, [0], 1, 0.9, table(1)),
    r"decay is -1, must be in \[0, 1\]": lambda f: f(X, [0, 8], 1, -1.0, table(1)),
    "stats has dtype Double, must be Float": lambda f: f(X, [0, 8], 1, 0.9, table(1).double()),
    r"stats is \[2, 8\], must be a contiguous \[1, 8\]": lambda f: f(X, [0, 8], 1, 0.9, table(2)),
    "stats shares memory with values": lambda f: f(*(m := overlapping())[:1], [0, 8], 1, 0.9, m[1]),
}


@pytest.mark.parametrize("message", IN_LIBRARY)
def test_the_library_refuses_what_would_harm_memory(message):
    require("cpp", backends.why_not("cpp", "cpu"))
    with pytest.raises(RuntimeError, match=message):
        IN_LIBRARY[message](torch.ops.esper_native.seed_stats.default)
