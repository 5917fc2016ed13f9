"""Handwritten digits: 1,797 grey 8 x 8 images of ten classes, and a convolutional network too small for them.

Data: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, as scikit-learn ships it.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from esper.tolaria.task import Task
from esper.tolaria.tasks.splits import Rows, generator_of, split_rows


class SmallConvNet(nn.Module):
    """Three 3 x 3 convolutions, global average pooling and a linear head: 662 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 1, 8, 8] to class scores [B, 10]."""
        x = F.relu(self.conv1(images))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        scores: Tensor = self.head(x.mean((2, 3)))
        return scores


def cross_entropy(scores: Tensor, batch: Rows) -> Tensor:
    """Cross entropy of each example, in nats. [B]."""
    return F.cross_entropy(scores, batch[1], reduction="none")


def correct(scores: Tensor, batch: Rows) -> Tensor:
    """1 where the highest score is the target's. [B]."""
    return (scores.argmax(1) == batch[1]).float()


def shifts(images: Tensor) -> Tensor:
    """Images [N, 1, H, W] moved by up to one pixel each way, zeros coming in. [9, N, 1, H, W], unmoved ones at 4."""
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1))
    return torch.stack([padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)])


def task(seed: int = 0, steps: int = 10_000, batch_size: int = 192) -> Task:
    """897 training rows, each drawn with a random shift; 250 for the choice, 250 for verdicts, 400 for the test.

    Rows are cut anew for each seed.
    """
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    targets = torch.tensor(digits.target)
    split = split_rows(images, targets, seed=seed, counts={"select": 250, "judge": 250, "test": 400})
    moved = shifts(split.train[0])

    def batch(step: int) -> Rows:
        generator = generator_of(seed, step)
        rows = torch.randint(len(split.train[1]), (batch_size,), generator=generator)
        move = torch.randint(len(moved), (batch_size,), generator=generator)
        return moved[move, rows], split.train[1][rows]

    return Task(
        name="digits",
        seed=seed,
        steps=steps,
        make_model=SmallConvNet,
        make_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=2e-3),
        batch=batch,
        held_out=split.slice,
        loss=cross_entropy,
        score=correct,
        target_layers=[nn.Conv2d],
        # a trial must be back while there is time for another one
        growth={"candidates_per_site": 3, "halving_step": 120, "keep_candidates": 3},
    )
