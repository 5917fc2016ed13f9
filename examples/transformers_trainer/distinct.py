"""The task: how many different token ids a row has, told by a small BERT."""

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, get_linear_schedule_with_warmup

import esper

STEPS, ROWS, LENGTH, IDS = 1500, 32, 8, 6


def rows(count: int, seed: int) -> dict[str, Tensor]:
    """`count` rows of ids, each drawn from 1 to 6 different ones."""
    generator = torch.Generator().manual_seed(seed)
    choices = torch.randint(1, IDS + 1, (count, 1), generator=generator)
    order = torch.rand(count, IDS, generator=generator).argsort(1)
    drawn = (torch.rand(count, LENGTH, generator=generator) * choices).long()
    ids = order.gather(1, drawn)
    labels = nn.functional.one_hot(ids, IDS).amax(1).sum(1) - 1
    return {"input_ids": ids, "labels": labels}


def make_model() -> nn.Module:
    config = BertConfig(
        vocab_size=IDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=LENGTH,
        num_labels=IDS,
        initializer_range=0.3,  # the default is for hundreds of units
        hidden_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def make_task() -> esper.Task:
    return esper.Task(
        name="distinct",
        make_model=make_model,
        make_optimizer=lambda model: torch.optim.AdamW(model.parameters(), 3e-3),
        make_scheduler=lambda optimizer: get_linear_schedule_with_warmup(optimizer, 100, STEPS),
        batch=lambda step: rows(ROWS, step),
        held_out=lambda name: [rows(500, {"select": -1, "judge": -2, "test": -3}[name])],
        forward=lambda model, batch: model(**batch),
        loss=lambda outputs, batch: nn.functional.cross_entropy(outputs.logits, batch["labels"], reduction="none"),
        clip_norm=1.0,
        target_layers=["*.intermediate.dense", "*.pooler.dense"],
        steps=STEPS,
    )
