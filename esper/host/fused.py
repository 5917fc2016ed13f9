"""Keep torch's transformer blocks off their fused paths while a seed inside them is active.

nn.TransformerEncoderLayer computes its whole forward in one call in eval without grad;
nn.TransformerEncoder, given a padding mask, packs its batch into a nested tensor for
that call, which no graft can join.
"""

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

from esper.host.forward import grafts_of
from esper.host.sites import Site

# The attribute each class looks at before it takes its fused path, and what to say there: 0 is "neither relu nor gelu".
_SWITCHES: dict[type[nn.Module], tuple[str, object]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
_KEPT = "_esper_kept_switch"


def fused_ancestors(model: nn.Module, name: str) -> tuple[str, ...]:
    """Enclosing blocks of a module that have a fused path, innermost first; "" is the model itself."""
    parts = name.split(".")
    enclosing = [".".join(parts[:n]) for n in range(len(parts) - 1, -1, -1)]
    return tuple(a for a in enclosing if _switch(model.get_submodule(a)) is not None)


def update_fused_paths(model: nn.Module, sites: Iterable[Site]) -> None:
    """Switch the fused path of each block off if a site inside it is active, and back if none is."""
    sites = list(sites)
    needed = {block for site in sites if grafts_of(site.module) for block in site.fused_blocks}
    for name in {block for site in sites for block in site.fused_blocks}:
        set_fused(model.get_submodule(name), name not in needed)


@contextlib.contextmanager
def off_fused_paths(model: nn.Module, site: Site) -> Iterator[None]:
    """Inside, no block around `site` takes its fused path."""
    blocks = [model.get_submodule(name) for name in site.fused_blocks]
    fused = [block for block in blocks if _KEPT not in vars(block)]
    for block in fused:
        set_fused(block, False)
    try:
        yield
    finally:
        for block in fused:
            set_fused(block, True)


def without_nesting(model: nn.Module) -> None:
    """Switch nested tensors off for good, on a model that is thrown away."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            set_fused(module, False)


def set_fused(block: nn.Module, allowed: bool) -> None:
    """Allow or forbid one block's fused path; what it would have done by itself comes back."""
    found = _switch(block)
    if found is None:
        return
    name, off = found
    own = vars(block)
    if not allowed and _KEPT not in own:
        own[_KEPT], own[name] = own[name], off
    elif allowed and _KEPT in own:
        own[name] = own.pop(_KEPT)


def _switch(block: nn.Module) -> tuple[str, object] | None:
    return next(
        (s for cls, s in _SWITCHES.items() if isinstance(block, cls) and s[0] in vars(block)),
        None,
    )
