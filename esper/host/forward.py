"""Swap a module's forward, and give it back.

Active = `m.forward = functools.partial(seeded_forward, m)` on the instance; dormant =
`del m.forward`, the plain module. A partial over a module-level function is what
torch.compile, deepcopy and pickle all follow; hooks, `__class__` and bound methods
are stale, slow or do not pickle. One partial serves a module for as long as it is
active, because compiled code is guarded on its identity.
"""

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from esper.host.graft import Graft, join
from esper.host.launches import launches
from esper.host.sites import Site

PREFIX = "esper_"
_NAMES = "_esper_grafts"  # plain attribute of an active module: its grafts' child names, in order
_SEEDED = "_esper_forward"  # plain attribute of an active module: the partial that runs them


def seeded_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module's own forward, then its grafts."""
    return join_grafts(module, own_forward(module, *args, **kwargs))


def own_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What the module's class computes, its grafts left out."""
    if runs_as_chain(module):
        return _chain(module, *args, **kwargs)
    return type(module).forward(module, *args, **kwargs)


def runs_as_chain(module: nn.Module) -> bool:
    """Whether the class's forward is nn.Sequential's, which would run a graft as one more layer."""
    return type(module).forward is nn.Sequential.forward


def _chain(module: nn.Module, input: Any) -> Any:
    for name, child in module._modules.items():
        if not name.startswith(PREFIX):
            input = child(input)  # type: ignore[misc]
    return input


def join_grafts(module: nn.Module, output: Any) -> Any:
    """Apply a module's grafts to its output, in order of insertion, those on disjoint chunks together.

    Of a tuple, to the first element.
    """
    tensor = output[0] if isinstance(output, tuple) else output
    grafts = [module._modules[name] for name in module.__dict__.get(_NAMES, ())]
    for launch in launches(grafts):  # type: ignore[type-var]
        tensor = launch[0](tensor) if len(launch) == 1 else join(launch, tensor)  # type: ignore[misc, arg-type]
    return with_first(output, tensor)


def with_first(output: Any, tensor: Tensor) -> Any:
    """A module's output with its first tensor replaced; a named tuple keeps its class."""
    if not isinstance(output, tuple):
        return tensor
    make: Callable[..., Any] = getattr(type(output), "_make", type(output))
    return make((tensor, *output[1:]))


def attach(site: Site, slot: int, graft: Graft) -> None:
    """Register `graft` as the site's child and let the site's forward run it after those that are there."""
    module = site.module
    name = f"{PREFIX}{slot}"
    graft.train(module.training)
    module.add_module(name, graft)
    module.__dict__[_NAMES] = (*module.__dict__.get(_NAMES, ()), name)
    install(module)


def detach(site: Site, slot: int) -> Graft:
    """Take a graft out; the last one out leaves the plain module."""
    module = site.module
    name = f"{PREFIX}{slot}"
    graft = module._modules.pop(name)
    assert isinstance(graft, Graft)
    left = tuple(n for n in module.__dict__[_NAMES] if n != name)
    if left:
        module.__dict__[_NAMES] = left
    else:
        del module.__dict__[_NAMES]
        vars(module).pop(_SEEDED, None)
        restore(module)
    return graft


def arrange(site: Site, slots: Iterable[int]) -> None:
    """Let a site's grafts run in the order of `slots`, which are all of its slots that carry one."""
    names = tuple(f"{PREFIX}{slot}" for slot in slots)
    own = site.module.__dict__
    if own.get(_NAMES, ()) != names:
        assert set(own.get(_NAMES, ())) == set(names)
        own[_NAMES] = names


def install(module: nn.Module) -> None:
    """Route calls of `module` through its grafts."""
    own = vars(module)
    if _SEEDED not in own:
        own[_SEEDED] = functools.partial(seeded_forward, module)
    own["forward"] = own[_SEEDED]


def bypass(module: nn.Module) -> None:
    """Route calls of `module` past its grafts, which stay where they are."""
    module.forward = functools.partial(own_forward, module)


def restore(module: nn.Module) -> None:
    """Give the module its class's forward back. What was swapped in is gone; nothing else changes."""
    vars(module).pop("forward", None)


def bare(module: nn.Module) -> nn.Module:
    """The module as its class made it: the same parameters and children in another object, without grafts."""
    if not carries_grafts(module):
        return module
    plain = copy.copy(module)
    for name in (_NAMES, _SEEDED, "forward"):
        vars(plain).pop(name, None)
    vars(plain)["_modules"] = {n: m for n, m in module._modules.items() if not n.startswith(PREFIX)}
    return plain


def carries_grafts(module: nn.Module) -> bool:
    return _NAMES in vars(module)


def grafts_of(module: nn.Module) -> dict[int, Graft]:
    """Slot -> graft of one module, in order of insertion."""
    found = {}
    for name in module.__dict__.get(_NAMES, ()):
        graft = module._modules[name]
        assert isinstance(graft, Graft)
        found[int(name.removeprefix(PREFIX))] = graft
    return found
