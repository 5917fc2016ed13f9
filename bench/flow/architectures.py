"""Architectures built from their configuration, small, without downloaded weights."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.host.sites import Target


@dataclass(frozen=True, slots=True)
class Architecture:
    """`inputs` are keyword arguments. `targets` None: Esper's default, Linear and Conv1d and Conv2d."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Mapping[str, Any]]
    targets: list[Target] | None = None

    def model(self) -> nn.Module:
        """Built anew with the same first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make()


class Tagger(nn.Module):
    """An LSTM and a linear head per position."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 16, num_layers=2, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.lstm(x)[0])
        return scores


class UNet(nn.Module):
    """One level down, one up, a skip between."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.bottom = nn.Conv2d(8, 16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join, self.out = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.norm(self.down(x)))
        low = F.relu(self.bottom(F.max_pool2d(skip, 2)))
        joined = torch.cat([skip, self.up(low)], 1)
        image: Tensor = self.out(F.relu(self.join(joined)))
        return image


class EncoderDecoder(nn.Module):
    """nn.Transformer, whose linear layers its fused path passes by in eval: its layers are sites as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(16, 2, 1, 1, 32, dropout=0.1, batch_first=True)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        out: Tensor = self.body(src, tgt)
        return out


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _ids(length: int = 7, vocabulary: int = 60) -> Tensor:
    return torch.randint(1, vocabulary, (2, length), generator=torch.Generator().manual_seed(1))


def _text(**more: Any) -> Mapping[str, Any]:
    return {"input_ids": _ids(), **more}


def _pixels() -> Mapping[str, Any]:
    return {"pixel_values": _drawn(2, 3, 32, 32)}


TORCH = {
    "mlp": Architecture(
        lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4)),
        lambda: {"input": _drawn(4, 8)},
        [nn.Linear, nn.BatchNorm1d, nn.ReLU],
    ),
    "lstm": Architecture(Tagger, lambda: {"x": _drawn(2, 6, 8)}, [nn.LSTM, nn.Linear]),
    "transformer": Architecture(
        EncoderDecoder,
        lambda: {"src": _drawn(2, 6, 16), "tgt": _drawn(2, 5, 16)},
        [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer],
    ),
    "unet": Architecture(UNet, lambda: {"x": _drawn(2, 1, 8, 8)}, [nn.Conv2d, nn.BatchNorm2d]),
}


def transformers_architectures() -> dict[str, Architecture]:
    """From the package `transformers`, imported when this is called."""
    hf: Any = importlib.import_module("transformers")
    conv1d = importlib.import_module("transformers.pytorch_utils").Conv1D
    hf.logging.set_verbosity_error()
    # at the customary spread of 0.02 the first layers of so small a model hardly reach its output
    wide = {"initializer_range": 0.2}
    decoder = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = {**wide, **decoder, "intermediate_size": 48, "max_position_embeddings": 32}
    llama = {**encoder, "num_key_value_heads": 1, "use_cache": False, "pad_token_id": 0}
    image = {"image_size": 32, "num_channels": 3, "num_labels": 5}
    convolutional = {"num_channels": 3, "hidden_sizes": [12, 20], "depths": [1, 1], "num_labels": 5}
    t5 = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "use_cache": False}
    opt = {**decoder, "ffn_dim": 48, "max_position_embeddings": 32, "word_embed_proj_dim": 32, "use_cache": False}
    distil = {
        **wide,
        "vocab_size": 60,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 48,
        "max_position_embeddings": 32,
    }
    gpt2 = {**wide, "vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "use_cache": False}
    swin = {**image, **wide, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    vit = {**image, **{k: v for k, v in encoder.items() if k != "vocab_size"}, "patch_size": 8}
    vit.pop("max_position_embeddings")
    return {
        "gpt2": Architecture(lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt2)), _text, [conv1d]),
        "llama": Architecture(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**llama)), _text),
        "mistral": Architecture(lambda: hf.MistralForCausalLM(hf.MistralConfig(**llama)), _text),
        "opt": Architecture(lambda: hf.OPTForCausalLM(hf.OPTConfig(**opt)), _text),
        "bert": Architecture(lambda: hf.BertForMaskedLM(hf.BertConfig(**encoder)), _text),
        "distilbert": Architecture(lambda: hf.DistilBertForMaskedLM(hf.DistilBertConfig(**distil)), _text),
        "t5": Architecture(
            lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5)), lambda: _text(decoder_input_ids=_ids(5))
        ),
        "vit": Architecture(lambda: hf.ViTForImageClassification(hf.ViTConfig(**vit)), _pixels),
        "swin": Architecture(lambda: hf.SwinForImageClassification(hf.SwinConfig(**swin)), _pixels),
        "resnet": Architecture(
            lambda: hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=8, **convolutional)), _pixels
        ),
        # its linear layers see maps with the channels last, which are no sites
        "convnext": Architecture(
            lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(num_stages=2, **convolutional)),
            _pixels,
            [nn.Conv2d, "classifier"],
        ),
    }
