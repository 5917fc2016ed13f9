"""Whether a model looks ahead, found from the gradient; a wrong yes would hinder, a wrong no would leak."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from esper.blueprint.interface import Kind
from tests import builders


class Returns(nn.Module):
    """A reader whose output is rearranged as some models do."""

    def __init__(self, causal, rearrange):
        super().__init__()
        self.reader, self.rearrange = builders.Reader(causal=causal), rearrange

    def forward(self, ids):
        return self.rearrange(self.reader(ids), ids)


class Tcn(nn.Module):
    """Two 1-d convolutions, padded on the left or on both sides."""

    def __init__(self, causal):
        super().__init__()
        self.causal = causal
        self.first, self.second = nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3)

    def forward(self, x):
        for conv in (self.first, self.second):
            x = conv(F.pad(x, (2, 0) if self.causal else (1, 1)))
        return x


def verdicts(model, targets, example):
    return {name: site.interface.causal for name, site in builders.sites(model, targets, example).items()}


READER_SITES = ["embed", "norm", "attention", "fc1", "fc2", "head"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_language_model_is_causal_and_an_encoder_is_not(batch_first):
    example = builders.ids(3, 7) if batch_first else builders.ids(7, 3)
    causal = verdicts(builders.Reader(causal=True, batch_first=batch_first), READER_SITES, example)
    assert causal == dict.fromkeys(READER_SITES, True)
    free = verdicts(builders.Reader(causal=False, batch_first=batch_first), READER_SITES, example)
    assert free == dict.fromkeys(READER_SITES, False)  # those after the attention too, which nothing mixes any more


def test_an_encoder_of_vectors_is_not_causal_after_its_last_attention_either():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), nn.Linear(8, 3))
    assert verdicts(model, ["0", "1"], torch.randn(2, 5, 8)) == {"0": False, "1": False}


def test_a_per_position_network_never_looks_ahead():
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 4))
    assert verdicts(model, nn.Linear, torch.randn(2, 5, 4)) == {"0": True, "2": True}


@pytest.mark.parametrize("causal", [True, False])
def test_a_temporal_convolution_is_causal_as_it_is_padded(causal):
    assert verdicts(Tcn(causal), "first", torch.randn(3, 2, 9)) == {"first": causal}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "rearrange",
    [
        lambda scores, ids: scores.flatten(0, 1),
        lambda scores, ids: (scores.flatten(0, 1), scores.sum()),
        lambda scores, ids: {"loss": scores.sum() * 0 + 1, "scores": scores},
        lambda scores, ids: scores.transpose(1, 2),
        lambda scores, ids: F.cross_entropy(scores.flatten(0, 1), ids.flatten(), reduction="none"),
        lambda scores, ids: scores[..., 0],
        lambda scores, ids: scores.transpose(0, 1),
    ],
    ids=["flat", "tuple", "dict", "channels_first", "losses", "one_score", "sequence_first"],
)
def test_the_order_is_found_in_outputs_of_other_shapes(causal, rearrange):
    assert verdicts(Returns(causal, rearrange), "reader.embed", builders.ids(3, 7)) == {"reader.embed": causal}


def test_each_site_of_an_encoder_and_decoder_has_its_own_verdict():
    class Translator(nn.Module):
        def __init__(self):
            super().__init__()
            self.source, self.target = nn.Embedding(11, 8), nn.Embedding(11, 8)
            self.mixed = nn.MultiheadAttention(8, 2, batch_first=True)
            self.masked = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 11)

        def forward(self, ids):
            s, t = self.source(ids), self.target(ids)
            mask = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
            t = t + self.masked(t, t, t, attn_mask=mask)[0]
            return self.head(t + self.mixed(t, s, s)[0])

    assert verdicts(Translator(), ["source", "target", "masked", "mixed", "head"], builders.ids()) == {
        "source": False,
        "target": True,
        "masked": True,
        "mixed": True,
        "head": True,
    }


def test_a_patch_that_looks_ahead_within_itself_is_found_wherever_the_cut_lies():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            pairs = self.fc(x).unflatten(1, (-1, 2))
            return (pairs + pairs.flip(2)).flatten(1, 2)

    for length in (4, 6, 8, 10):
        assert verdicts(Patches(), "fc", torch.randn(2, length, 3)) == {"fc": False}


def test_a_model_with_one_output_per_example_is_not_causal():
    model = Returns(True, lambda scores, ids: scores.mean(1))
    assert verdicts(model, "reader.embed", builders.ids(3, 7)) == {"reader.embed": False}
    scalar = Returns(True, lambda scores, ids: scores.mean())
    assert verdicts(scalar, "reader.embed", builders.ids(3, 7)) == {"reader.embed": False}


def test_one_position_has_no_order():
    assert verdicts(builders.Reader(), "fc1", builders.ids(3, 1)) == {"fc1": False}


@pytest.mark.parametrize("stated", [True, False])
def test_what_the_user_states_overrules_the_gradient(stated):
    site = builders.sites(builders.Reader(causal=not stated), "embed", builders.ids(), causal=stated)["embed"]
    assert site.interface.causal is stated


def test_layouts_without_an_order_are_never_causal():
    found = builders.sites(builders.conv_net(), ["0", "6"], builders.images(), causal=True)
    assert {site.interface.kind for site in found.values()} == {Kind.MAP2D, Kind.VECTOR}
    assert not any(site.interface.causal for site in found.values())


class Chomped(nn.Module):
    """A temporal convolution that pads both sides and cuts its end off, with a scale that sees the padded length."""

    def __init__(self, causal):
        super().__init__()
        self.causal = causal
        self.first, self.scale = nn.Conv1d(4, 4, 3, padding=2), nn.PReLU(4)

    def forward(self, x):
        padded = self.scale(self.first(x))
        return padded[..., :-2] if self.causal else padded[..., 1:-1]


@pytest.mark.parametrize("causal", [True, False])
def test_a_layer_of_another_length_than_the_output_is_as_causal_as_the_way_it_lies_on(causal):
    example = torch.randn(3, 4, 9)
    assert verdicts(Chomped(causal), ["first", "scale"], example) == {"first": causal, "scale": causal}
    read = nn.Sequential(nn.Embedding(11, 4), Turned(Chomped(causal)))
    assert verdicts(read, "1.inner.first", builders.ids(3, 9)) == {"1.inner.first": causal}


class Turned(nn.Module):
    """[B, T, C] to a module that has the channels second, and back."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.transpose(1, 2)).transpose(1, 2)


def test_a_layer_at_half_the_rate_of_a_network_that_looks_ahead_is_not_causal():
    class Hourglass(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv1d(2, 4, 2, stride=2), nn.ConvTranspose1d(4, 2, 2, stride=2)

        def forward(self, x):
            return self.up(self.down(x))

    assert verdicts(Hourglass(), "down", torch.randn(3, 2, 8)) == {"down": False}


@pytest.mark.parametrize("frozen", ["embed", "all"])
@pytest.mark.parametrize("causal", [True, False])
def test_a_frozen_model_is_as_causal_as_it_would_be_learning(causal, frozen):
    model = builders.Reader(causal=causal)
    (model if frozen == "all" else model.embed).requires_grad_(False)
    assert verdicts(model, READER_SITES, builders.ids(3, 7)) == dict.fromkeys(READER_SITES, causal)


@pytest.mark.parametrize("causal", [True, False])
def test_a_checkpointed_block_is_as_causal_as_it_would_be_at_once(causal):
    class Checkpointed(builders.Reader):
        def forward(self, ids):
            return checkpoint(super().forward, ids, use_reentrant=False)

    assert verdicts(Checkpointed(causal=causal), READER_SITES, builders.ids(3, 7)) == dict.fromkeys(
        READER_SITES, causal
    )
