"""The registered operator esper::advance_state: schema, fake, and its refusal under vmap.

torch.export, tensor subclasses, functorch and opcheck see it; eager calls go around it. It has no gradient, and
autocast leaves it alone: its dtypes are the table's.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor

from esper.errors import InvalidRequest
from esper.ops.advance_state import run
from esper.ops.advance_state_arguments import check_state

library = torch.library.Library("esper", "FRAGMENT")
library.define(
    "advance_state(Tensor(a!) alphas, Tensor(b!) ages, Tensor(c!) step, Tensor states, Tensor ramp_begins, "
    "Tensor ramp_steps, int ramping, int counting) -> ()"
)


def _advance_state(
    alphas: Tensor,
    ages: Tensor,
    step: Tensor,
    states: Tensor,
    ramp_begins: Tensor,
    ramp_steps: Tensor,
    ramping: int,
    counting: int,
) -> None:
    check_state(alphas, ages, step, states, ramp_begins, ramp_steps, ramping, counting)
    run(alphas, ages, step, states, ramp_begins, ramp_steps, ramping, counting)


def _refuse_vmap(*_: Any) -> NoReturn:
    raise InvalidRequest(
        "advance_state: a model has one step, and vmap would take it once per example; call it outside of vmap"
    )


library.impl("advance_state", _advance_state, "CompositeExplicitAutograd")
torch.library.register_fake("esper::advance_state", check_state, lib=library)
torch.library.register_vmap("esper::advance_state", _refuse_vmap, lib=library)
