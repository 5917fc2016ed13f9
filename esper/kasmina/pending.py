"""Sites of a model that was wrapped without a batch: the first one it is called on proves them."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from esper.host.proof import prove
from esper.host.sites import Site

if TYPE_CHECKING:
    from esper.kasmina.handle import ModelHandle


class Pending:
    """Layers that were chosen and are not proved yet. Until then a hook waits on the model."""

    def __init__(self, handle: "ModelHandle", chosen: list[tuple[str, nn.Module]], causal: bool | None) -> None:
        self.model = handle.model
        self.chosen = chosen
        self.causal = causal
        self._first_call = functools.partial(_first_call, handle)
        self._wait()

    def prove(self, run: Callable[[nn.Module], object]) -> dict[str, Site]:
        """The sites. Raises WrapRefused; they are pending still then, and no batch gets past it."""
        self.forget()
        try:
            return {site.name: site for site in prove(self.model, self.chosen, run, causal=self.causal)}
        except BaseException:
            self._wait()
            raise

    def forget(self) -> None:
        """Wait no longer."""
        self._hook.remove()

    def _wait(self) -> None:
        self._hook = self.model.register_forward_pre_hook(self._first_call, with_kwargs=True)


def _first_call(handle: "ModelHandle | None", _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if handle is not None:  # a copy of the model has the hook too, and no handle
        handle.prove(lambda model: model(*args, **kwargs))
