"""A layer of torch.nn as the constructor call that makes an equal one."""

import torch
import torch.nn.functional as F
from torch import nn

from esper.host.forward import bare


def constructor_call(module: nn.Module) -> str | None:
    """Source of an expression that makes an equal layer, its grafts left out; None where there is none.

    Weights are not part of it: they come from the state.
    """
    module = bare(module)
    text = _call(module)
    if text is None:
        return None
    try:
        made = eval(text, {"nn": nn, "torch": torch})
    except Exception:  # a repr that is not a constructor call may fail in any way
        return None
    return text if _equal(made, module) else None


def _call(module: nn.Module) -> str | None:
    if isinstance(module, nn.TransformerEncoderLayer):
        text = _encoder_layer(module)
    elif isinstance(module, nn.MultiheadAttention):
        text = _attention(module)
    else:
        text = None if any(True for _ in module.children()) else f"nn.{module!r}"
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return text if text is None or dtype is torch.float32 else f"{text}.to({dtype})"


def _attention(module: nn.MultiheadAttention) -> str:
    return (
        f"nn.MultiheadAttention({module.embed_dim}, {module.num_heads}, dropout={module.dropout}, "
        f"bias={module.in_proj_bias is not None}, batch_first={module.batch_first})"
    )


def _encoder_layer(module: nn.TransformerEncoderLayer) -> str | None:
    activation = {F.relu: "relu", F.gelu: "gelu"}.get(module.activation)
    if activation is None:
        return None
    attention = module.self_attn
    return (
        f"nn.TransformerEncoderLayer({attention.embed_dim}, {attention.num_heads}, {module.linear1.out_features}, "
        f"{module.dropout.p}, {activation!r}, {module.norm1.eps}, batch_first={attention.batch_first}, "
        f"norm_first={module.norm_first}, bias={module.linear1.bias is not None})"
    )


def _equal(made: nn.Module, module: nn.Module) -> bool:
    """Whether two layers are of one class with tensors of the same shapes and the same settings."""
    shapes = [{name: (t.shape, t.dtype) for name, t in each.state_dict().items()} for each in (made, module)]
    if type(made) is not type(module) or shapes[0] != shapes[1]:
        return False
    inside = dict(module.named_modules())
    return all(name in inside and _same_settings(each, inside[name]) for name, each in made.named_modules())


def _same_settings(made: nn.Module, module: nn.Module) -> bool:
    """Whether what a constructor set on `made` is set on `module` too; a repr may leave a setting out."""
    plain = (bool, int, float, str, tuple, type(None))
    settings = {k: v for k, v in vars(made).items() if not k.startswith("_") and k != "training"}
    theirs = vars(module)
    return all(theirs.get(k) == v for k, v in settings.items() if isinstance(v, plain))
