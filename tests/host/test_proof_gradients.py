"""What only a gradient tells of a site: whether it reaches the model's output, and whether a seed there could learn."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests import builders
from tests.host.test_proof import only, refusal


class Unused(nn.Module):
    """Two layers, one of which the output has nothing of; or of whose pair it uses the second only."""

    def __init__(self, pair):
        super().__init__()
        self.used, self.other, self.pair = nn.Linear(3, 3), ScoresAndShares() if pair else nn.Linear(3, 3), pair

    def forward(self, x):
        other = self.other(x)
        return self.used(x) + (other[1] if self.pair else 0)


class ScoresAndShares(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        scores = self.fc(x)
        return scores, scores.softmax(-1)


@pytest.mark.parametrize("pair", [True, False])
def test_a_module_whose_output_is_not_used_is_refused(pair):
    message = refusal(Unused(pair), "other", torch.randn(4, 3))
    assert "other (" in message and "does not reach the model's output, so a seed there could not learn" in message
    assert only(Unused(pair), "used", torch.randn(4, 3)).interface.channels == 3


def test_one_call_that_reaches_the_output_is_enough():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            out = self.fc(x)
            self.fc(out)
            return out

    assert only(Twice(), "fc", torch.randn(4, 3)).interface.channels == 3


def test_a_run_that_returns_nothing_says_nothing_of_what_is_reached():
    from esper.host.proof import prove
    from esper.host.sites import select

    model = builders.perceptron()
    (site,) = prove(model, select(model, "2"), lambda m: [m(builders.rows())].clear())
    assert site.interface.channels == 6


def test_a_model_of_which_no_gradient_can_be_asked_is_refused_with_the_layer_and_the_remedy():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.fc, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, ids):
            read = self.read(ids)
            return self.head(checkpoint(self.fc, read, use_reentrant=True) if self.training else self.fc(read))

    message = refusal(Checkpointed(), ["fc", "head"], torch.tensor([[1, 2, 3]]))
    assert message.startswith("fc in Checkpointed cannot be a site") and "use_reentrant=False" in message


def test_a_module_run_without_grad_is_refused_and_a_frozen_one_is_not():
    class Extracts(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.head = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(inplace=True)), nn.Linear(4, 2)

        def forward(self, x):
            with torch.set_grad_enabled(all(p.requires_grad for p in self.features.parameters())):
                seen = self.features(x)
            return self.head(seen)

    model, x = Extracts(), torch.randn(2, 2, 4)
    assert only(model, "features.0", x).interface.channels == 3
    model.features.requires_grad_(False)
    assert "features.0 (Conv1d) cannot be a site: in train mode it is run without grad" in refusal(
        model, "features.0", x
    )
    frozen = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(inplace=True)).requires_grad_(False)
    assert only(frozen, "0", x).interface.channels == 3
