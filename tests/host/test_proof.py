"""The probe: what is proved to be called, what is refused and which site is named instead."""

import random
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esper.blueprint.interface import Interface, Kind
from esper.errors import WrapRefused
from esper.host.layout import Layout
from tests import builders


class Calls(nn.Module):
    """Calls `first` on each of several inputs."""

    def __init__(self, first, *, others=()):
        super().__init__()
        self.first = first
        self.others = nn.ModuleList(others)

    def forward(self, x):
        return x + self.first(x).mean()


def only(model, target, example, **options):
    return builders.sites(model, target, example, **options)[target]


def refusal(model, target, example):
    with pytest.raises(WrapRefused) as refused:
        builders.sites(model, target, example)
    return str(refused.value)


def test_a_linear_layer_is_a_vector_site_with_its_own_dtype():
    site = only(builders.perceptron().double(), "2", builders.rows().double())
    assert site.interface == Interface(Kind.VECTOR, 6, torch.float64)
    assert (site.name, site.layer_kind, site.layout, site.positions) == ("2", "Linear", Layout(Kind.VECTOR), 1)
    assert site.parameter_count == 42


def test_positions_count_pixels_and_tokens():
    assert only(builders.conv_net(), "0", builders.images()).positions == 36
    assert only(builders.Reader(), "fc1", builders.ids(3, 7)).positions == 7


def test_under_autocast_the_interface_follows_the_parameters_not_the_activation():
    def run(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(builders.rows())

    from esper.host.proof import prove
    from esper.host.sites import select

    model = builders.perceptron()
    linear, tanh = prove(model, select(model, ["2", "3"]), run)
    assert linear.interface.dtype is torch.float32
    assert tanh.interface.dtype is torch.bfloat16  # it has no parameters: the activation's own


def test_the_out_projection_of_attention_is_refused_naming_the_attention():
    message = refusal(builders.Reader(), nn.Linear, builders.ids())
    assert message.startswith("attention.out_proj (NonDynamicallyQuantizableLinear)")
    assert message.endswith("take 'attention' instead")
    assert only(builders.Reader(), "attention", builders.ids()).layout == Layout(Kind.TOKENS, first_of_tuple=True)


@pytest.mark.parametrize("inner", ["linear1", "linear2", "norm1", "self_attn", "dropout"])
def test_a_layer_inside_a_fused_block_is_refused_naming_the_block(inner):
    model = nn.ModuleDict({"block": nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)})
    model.forward = None
    model = nn.Sequential(nn.Linear(8, 8), model["block"])
    message = refusal(model, f"1.{inner}", torch.randn(2, 5, 8))
    assert "takes a fused path that never calls it; take the block '1' instead" in message


def test_the_fused_block_itself_is_a_site():
    model = nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True))
    site = only(model, "1", torch.randn(2, 5, 8))
    assert site.interface == Interface(Kind.TOKENS, 8)


def test_a_layer_of_a_block_that_cannot_fuse_is_a_site():
    model = nn.Sequential(nn.Linear(9, 9), nn.TransformerEncoderLayer(9, 3, 16, 0.0, batch_first=True))
    site = only(model, "1.linear1", torch.randn(2, 5, 9))  # an odd number of heads never fuses
    assert site.fused_blocks == ("1",)


def test_a_probe_with_a_padding_mask_does_not_meet_nested_tensors():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2)
    model = nn.ModuleDict({"encoder": encoder})
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    model.forward = None

    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, x):
            return self.encoder(x, src_key_padding_mask=mask)

    site = only(Padded(), "encoder.layers.1", torch.randn(2, 5, 8))
    assert site.interface.kind is Kind.TOKENS
    assert site.fused_blocks == ("encoder",)


def test_a_module_nobody_calls_is_refused_with_its_parent():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    message = refusal(nn.Sequential(Idle()), "0.spare", torch.randn(3, 2))
    assert (
        "its forward is never called in train and eval mode on the probe batch; take the block '0' instead" in message
    )
    assert "take the block" not in refusal(Idle(), "spare", torch.randn(3, 2))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_module_called_in_one_mode_only_is_refused_naming_the_other(mode):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            return self.fc(x) if self.training == (mode == "train") else x * 1.0

    other = {"train": "eval", "eval": "train"}[mode]
    assert f"never called in {other} mode" in refusal(Half(), "fc", torch.randn(3, 2))


def test_a_module_called_several_times_with_equal_shapes_is_one_site():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert list(builders.sites(model, nn.Linear, torch.randn(2, 3))) == ["0"]


def test_a_module_called_with_different_channels_is_refused_with_the_shapes():
    class Widths(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.up = nn.ReLU(), nn.Linear(3, 5)

        def forward(self, x):
            return self.act(self.up(self.act(x)))

    message = refusal(Widths(), "act", torch.randn(2, 3))
    assert "called several times with outputs of different channels or rank ([2, 3], [2, 5])" in message
    assert "take the blocks that call it" in message


class Pair(NamedTuple):
    hidden: torch.Tensor
    extra: int


class Gives(nn.Module):
    """Returns `make(x W)` for a site that is not a plain tensor."""

    def __init__(self, make):
        super().__init__()
        self.fc, self.make = nn.Linear(3, 3), make

    def forward(self, x):
        return self.make(self.fc(x))


def first_tensor(output):
    return output["h"] if isinstance(output, dict) else output[0]


class Outer(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.block = Gives(make)

    def forward(self, x):
        return first_tensor(self.block(x))


@pytest.mark.parametrize("make", [lambda h: (h, h + 1), lambda h: Pair(h, 2)], ids=["tuple", "namedtuple"])
def test_of_a_tuple_the_first_element_is_the_site(make):
    assert only(Outer(make), "block", torch.randn(2, 3)).layout == Layout(Kind.VECTOR, first_of_tuple=True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda h: {"h": h}, "its output is dict, not a floating-point tensor"),
        (lambda h: [h], "its output is list, not a floating-point tensor"),
        (lambda h: (h.long(), h), "its output is tuple, not a floating-point tensor"),
        (lambda h: (h[:, :, None, None, None], h), "its output has shape [2, 3, 1, 1, 1]"),
        (lambda h: (h.sum(), h), "its output has shape []"),
    ],
)
def test_outputs_no_graft_can_join_are_refused_with_what_they_are(make, said):
    assert said in refusal(Outer(make), "block", torch.randn(2, 3))


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_lstm_offers_its_hidden_sequence(batch_first):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(3, 5, batch_first=batch_first)

        def forward(self, x):
            return self.rnn(x)[0]

    site = only(Recurrent(), "rnn", torch.randn(2, 7, 3))
    assert site.interface == Interface(Kind.TOKENS, 5, causal=True)
    assert site.layout == Layout(Kind.TOKENS, transposed=not batch_first, first_of_tuple=True)
    assert site.positions == (7 if batch_first else 2)


def test_every_layer_of_a_sequence_first_model_is_transposed():
    model = builders.Reader(batch_first=False)
    found = builders.sites(model, ["embed", "norm", "attention", "fc1", "head"], builders.ids(7, 3))
    assert {site.layout.transposed for site in found.values()} == {True}
    assert {site.positions for site in found.values()} == {7}


def test_a_sequence_first_block_inside_a_batch_first_model_is_transposed_alone():
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = nn.Linear(8, 8)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, 0.0)

        def forward(self, x):
            return self.block(self.before(x).transpose(0, 1)).transpose(0, 1)

    found = builders.sites(Turns(), ["before", "block"], torch.randn(2, 5, 8))
    assert not found["before"].layout.transposed
    assert found["block"].layout.transposed


def test_as_many_tokens_as_examples_leaves_it_to_what_the_block_says():
    for batch_first in (True, False):
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first))
        assert only(model, "0", torch.randn(5, 5, 8)).layout.transposed is not batch_first


class Temporal(nn.Module):
    """[B, 2, L] through a 1-d convolution; the activations are modules."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv1d(2, 4, 3, padding=1), nn.ReLU()
        self.block = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4), nn.GELU())
        self.pool = nn.AvgPool1d(2)
        self.head = nn.Linear(4, 3)
        self.bent = nn.Tanh()

    def forward(self, x):
        h = self.pool(self.block(self.act(self.conv(x))))
        return self.bent(self.head(h.transpose(1, 2)))


def test_channels_of_a_layer_without_a_say_are_where_they_were_before():
    found = builders.sites(Temporal(), ["conv", "act", "block", "pool", "head", "bent"], torch.randn(3, 2, 10))
    kinds = {name: (str(site.interface.kind.value), site.interface.channels) for name, site in found.items()}
    maps, tokens = ("map1d", 4), ("tokens", 3)
    assert kinds == {"conv": maps, "act": maps, "block": maps, "pool": maps, "head": tokens, "bent": tokens}


def test_channels_last_images_are_refused():
    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(3, 3), nn.GELU()

        def forward(self, x):
            return self.act(self.fc(x))

    for name in ("fc", "act"):
        assert "a map's channels second" in refusal(Mixer(), name, torch.randn(2, 4, 4, 3))


@pytest.mark.parametrize(("layer", "example"), [(nn.Conv2d(1, 4, 3), (1, 6, 6)), (nn.Conv1d(1, 4, 3), (1, 6))])
def test_a_single_example_without_a_batch_is_refused(layer, example):
    assert "its output has shape" in refusal(nn.Sequential(layer), "0", torch.randn(example))


class Chain(nn.Sequential):
    """A container with a forward of its own that runs whatever children it has."""

    def forward(self, x, scale=1.0):
        for child in self:
            x = child(x) * scale
        return x


class Dense(nn.ModuleDict):
    def forward(self, x):
        seen = [x]
        for child in self.values():
            seen.append(child(torch.cat(seen, 1)))
        return torch.cat(seen, 1)


@pytest.mark.parametrize("make", [lambda: Chain(nn.Linear(3, 3)), lambda: Dense({"a": nn.Linear(3, 3)})])
def test_a_block_that_runs_every_child_it_has_is_refused_by_name(make):
    message = refusal(nn.Sequential(make()), "0", torch.randn(2, 3))
    assert "its forward runs every child it has" in message
    assert "take a layer inside it instead" in message


def test_a_plain_sequential_block_is_a_site():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 2))
    assert only(model, "0", torch.randn(2, 3)).layer_kind == "Sequential"


def test_a_model_that_cannot_be_copied_is_refused_with_the_remedy():
    model = builders.perceptron()
    model.kept = model(builders.rows())  # a non-leaf tensor
    assert "cannot be deep-copied" in refusal(model, "2", builders.rows())


def test_a_batch_the_model_does_not_take_is_refused_with_the_models_own_words():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    message = refusal(model, "0", torch.randn(1, 3))
    assert "does not run through the model in train mode" in message
    assert "Expected more than 1 value per channel" in message


def test_a_model_called_by_another_way_than_forward_is_proved_all_the_same():
    from esper.host.proof import prove
    from esper.host.sites import select

    class Encodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def encode(self, x):
            return self.fc(x)

    model = Encodes()
    (site,) = prove(model, select(model, "fc"), lambda m: m.encode(torch.randn(2, 3)))
    assert site.interface.channels == 3


def test_the_probe_draws_from_generators_that_come_back():
    class Draws(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            noise = torch.rand(()) + random.random() + np.random.rand()
            return F.dropout(self.fc(x), 0.5, self.training) + noise

    model, example = Draws(), torch.randn(2, 3)

    def state():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = state()
    only(model, "fc", example)
    assert state() == before


def test_the_probe_leaves_buffers_and_the_mode_alone():
    model = builders.conv_net(norm=True).eval()
    before = builders.state_of(model)
    only(model, "0", builders.images())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_candidates_are_not_lost_from_the_message():
    assert re.search(r"take '.+' instead", refusal(builders.Reader(), "attention.out_proj", builders.ids()))
