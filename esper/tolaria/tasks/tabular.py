"""Breast cancer from 30 measured features, and a small MLP that is large enough for them.

The task that should not grow: 249 training rows, and little left to learn after some hundred steps.
Data: W. Wolberg et al., "Breast Cancer Wisconsin (Diagnostic)", UCI, 1995, as scikit-learn ships it.
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from esper.tolaria.task import Task
from esper.tolaria.tasks.digits import correct, cross_entropy
from esper.tolaria.tasks.splits import split_rows, standardise


class SmallMLP(nn.Module):
    """30 features, two hidden layers of 8, two classes: 338 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(30, 8)
        self.hidden2 = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, 30] to class scores [B, 2]."""
        x = torch.relu(self.hidden1(features))
        x = torch.relu(self.hidden2(x))
        scores: Tensor = self.head(x)
        return scores


def task(seed: int = 0, steps: int = 6000, batch_size: int = 32) -> Task:
    """249 training rows, 80 for the choice, 80 for verdicts, 160 for the test; cut anew for each seed."""
    data = load_breast_cancer()
    features = torch.tensor(data.data, dtype=torch.float32)
    split = standardise(
        split_rows(features, torch.tensor(data.target), seed=seed, counts={"select": 80, "judge": 80, "test": 160})
    )
    return Task(
        name="tabular",
        seed=seed,
        steps=steps,
        make_model=SmallMLP,
        make_optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=2e-3),
        batch=lambda step: split.batch(step, size=batch_size, seed=seed),
        held_out=split.slice,
        loss=cross_entropy,
        score=correct,
        target_layers=["hidden?"],
    )
