"""Architectures of the package `transformers`, from configuration."""

import copy
import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from bench.flow.architectures import Architecture, drawn, ids

_WORDS = 60
# at the customary spread of 0.02 the first layers of so small a model hardly reach its output
_WIDE = {"initializer_range": 0.2}
_DECODER = {"vocab_size": _WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_ENCODER = {**_WIDE, **_DECODER, "intermediate_size": 48, "max_position_embeddings": 32}
_LLAMA = {**_ENCODER, "num_key_value_heads": 1, "use_cache": False, "pad_token_id": 0}
_IMAGE = {"image_size": 32, "num_channels": 3, "num_labels": 5}
_CONVOLUTIONAL = {"num_channels": 3, "hidden_sizes": [12, 20], "depths": [1, 1], "num_labels": 5}
_SPEECH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# what a layer drops at random as a whole, or masks with numpy's generator, is left on: nothing of the kind
_EVERY_LAYER = {"layerdrop": 0.0, "apply_spec_augment": False}
# what an export says of its experts, which only the package's own operator multiplies
_UNTRACEABLE = {"mixtral": "transformers.grouped_mm_fallback"}


def transformers_architectures() -> dict[str, Architecture]:
    """Name -> architecture. Imports the package when it is called; ImportError where it is absent."""
    hf: Any = importlib.import_module("transformers")
    hf.logging.set_verbosity_error()
    return _decoders(hf) | _encoders(hf) | _readers_and_writers(hf) | _images(hf) | _speech(hf)


def _text(**more: Any) -> Mapping[str, Any]:
    return {"input_ids": ids(vocabulary=_WORDS), **more}


def _pixels() -> Mapping[str, Any]:
    return {"pixel_values": drawn(2, 3, 32, 32)}


def _decoders(hf: Any) -> dict[str, Architecture]:
    conv1d = importlib.import_module("transformers.pytorch_utils").Conv1D
    gpt2 = {**_WIDE, "vocab_size": _WORDS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    opt = {**_DECODER, "ffn_dim": 48, "max_position_embeddings": 32, "word_embed_proj_dim": 32}
    mixtral = {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
    mamba = {**_WIDE, "vocab_size": _WORDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    neox = {**_WIDE, **_DECODER, "intermediate_size": 48, "max_position_embeddings": 32}
    off = {"use_cache": False}
    found = {
        "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config(**gpt2, **off), [conv1d]),
        "gpt-neox": (hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**neox, **off), None),
        "llama": (hf.LlamaForCausalLM, hf.LlamaConfig(**_LLAMA), None),
        "mistral": (hf.MistralForCausalLM, hf.MistralConfig(**_LLAMA), None),
        # its experts are one tensor each and no layers: the block of all of them is the site
        "mixtral": (hf.MixtralForCausalLM, hf.MixtralConfig(**mixtral), [nn.Linear, "*.mlp"]),
        "opt": (hf.OPTForCausalLM, hf.OPTConfig(**opt, **off), None),
        # its convolution and its time step are weights that a scan reads: the mixer of all of it is the site
        "mamba": (hf.MambaForCausalLM, hf.MambaConfig(**mamba, **off), ["*.in_proj", "*.x_proj", "*.mixer"]),
    }
    return {
        name: Architecture(
            lambda m=model, c=config: m(copy.deepcopy(c)),
            _text,
            targets,
            causal="input_ids",
            untraceable=_UNTRACEABLE.get(name, ""),
        )
        for name, (model, config, targets) in found.items()
    }


def _encoders(hf: Any) -> dict[str, Architecture]:
    distil = {"vocab_size": _WORDS, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
    positions = {"max_position_embeddings": 32}
    found = {
        "bert": (hf.BertForMaskedLM, hf.BertConfig(**_ENCODER)),
        # one layer called twice
        "albert": (hf.AlbertForMaskedLM, hf.AlbertConfig(**_ENCODER, embedding_size=16)),
        "distilbert": (hf.DistilBertForMaskedLM, hf.DistilBertConfig(**_WIDE, **distil, **positions)),
    }
    return {
        name: Architecture(lambda m=model, c=config: m(copy.deepcopy(c)), _text)
        for name, (model, config) in found.items()
    }


def _readers_and_writers(hf: Any) -> dict[str, Architecture]:
    t5 = {"vocab_size": _WORDS, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    bart = {"vocab_size": _WORDS, "d_model": 32, "max_position_embeddings": 32, "init_std": 0.2}
    for side in ("encoder", "decoder"):
        bart |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 48}
    found = {
        "t5": (hf.T5ForConditionalGeneration, hf.T5Config(**t5, use_cache=False)),
        "bart": (hf.BartForConditionalGeneration, hf.BartConfig(**bart, use_cache=False)),
    }
    return {
        name: Architecture(
            lambda m=model, c=config: m(copy.deepcopy(c)),
            lambda: _text(decoder_input_ids=ids(5, _WORDS)),
            causal="decoder_input_ids",
        )
        for name, (model, config) in found.items()
    }


def _images(hf: Any) -> dict[str, Architecture]:
    vit = {**_IMAGE, **{k: v for k, v in _ENCODER.items() if k not in ("vocab_size", "max_position_embeddings")}}
    swin = {**_IMAGE, **_WIDE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}
    efficient = {
        "in_channels": [8, 8],
        "out_channels": [8, 320],
        "kernel_sizes": [3, 5],
        "strides": [1, 2],
        "image_size": 32,
    }
    efficient |= {"num_block_repeats": [1, 2], "expand_ratios": [1, 4], "depth_coefficient": 1.0, "num_labels": 5}
    efficient |= {"width_coefficient": 0.05, "depth_divisor": 8, "hidden_dim": 64, "initializer_range": 0.5}
    # with a stride of 8 in all, so that a normalisation has more than one pixel of each image to see
    mobile = {"depth_multiplier": 0.25, "output_stride": 8, "image_size": 32, "num_labels": 5}
    found = {
        "vit": (hf.ViTForImageClassification, hf.ViTConfig(**vit, patch_size=8), None),
        "swin": (hf.SwinForImageClassification, hf.SwinConfig(**swin, window_size=4), None),
        "resnet": (hf.ResNetForImageClassification, hf.ResNetConfig(embedding_size=8, **_CONVOLUTIONAL), None),
        # its linear layers see maps with the channels last, which are no sites
        "convnext": (
            hf.ConvNextForImageClassification,
            hf.ConvNextConfig(num_stages=2, **_CONVOLUTIONAL),
            [nn.Conv2d, "classifier"],
        ),
        "efficientnet": (hf.EfficientNetForImageClassification, hf.EfficientNetConfig(**efficient), None),
        "mobilenet-v2": (hf.MobileNetV2ForImageClassification, hf.MobileNetV2Config(**mobile), None),
    }
    return {
        name: Architecture(lambda m=model, c=config: m(copy.deepcopy(c)), _pixels, targets)
        for name, (model, config, targets) in found.items()
    }


def _speech(hf: Any) -> dict[str, Architecture]:
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    wav2vec = hf.Wav2Vec2Config(**_SPEECH, **_WIDE, **_EVERY_LAYER, **convolutions, **positions, vocab_size=12)
    whisper = {"vocab_size": _WORDS, "num_mel_bins": 8, "d_model": 32, "max_source_positions": 8, "init_std": 0.2}
    for side in ("encoder", "decoder"):
        whisper |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 48}
    words = {"max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
    return {
        "wav2vec2": Architecture(
            lambda: hf.Wav2Vec2ForCTC(copy.deepcopy(wav2vec)),
            lambda: {"input_values": drawn(2, 200)},
        ),
        "whisper": Architecture(
            lambda: hf.WhisperForConditionalGeneration(hf.WhisperConfig(**whisper, **words)),
            lambda: {"input_features": drawn(2, 8, 16), "decoder_input_ids": ids(5, _WORDS)},
            causal="decoder_input_ids",
        ),
    }
