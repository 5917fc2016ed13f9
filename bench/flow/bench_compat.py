"""Which architectures Esper can grow: dormant it changes nothing, alive it computes what a hand-written module would.

Every row is 1 or 0, and a 0's reasons are on standard error.
`dormant_identical`: outputs in train, in eval and without grad, gradients, buffers and
state_dict keys of the wrapped model equal the plain model's bit for bit.
`alive_matches_spliced`: with a non-zero seed at alpha 1 the outputs in all three modes differ from
the host's, and they and the gradients are those of a copy into which the branch was spliced by hand.
`grows_and_learns`: a seed inserted at alpha 0 changes nothing bit for bit; led to alpha 1 and trained
by the host's optimiser, all its parameters get gradients and move, and no loss is infinite.
`fossilises`: a fossil, folded where algebra allows and kept elsewhere, computes what the seed did, the
optimiser holds what the model has, and it goes on learning.
`never_looks_ahead`, for causal models: with a seed that mixes positions at any site, no output sees a
later input.
`exports_to_torch`: the grown model as plain torch gives the same outputs in a process without Esper.
`export_refused_by_name`: where neither torch.fx nor torch.export can trace a forward into plain torch, the export
says so with both reasons, and leaves the model as it was.
`unwraps`: a model unwrapped is the plain one again, never grown or with a seed on trial; a fossil that
was kept as a branch stays and computes the same.
`refused_by_name`: what cannot carry seeds is refused with its name.
"""

import copy
import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.flow.architectures import TORCH, Architecture
from bench.flow.exported import export_differences
from bench.flow.from_geometric import geometric_architectures
from bench.flow.from_transformers import transformers_architectures
from bench.flow.lives import (
    at_some_sites,
    fossil_differences,
    growth_differences,
    order_differences,
    unwrap_differences,
)
from bench.flow.observed import MODES, TOLERANCE, differences, seen, some_sites
from bench.flow.refused import REFUSED
from bench.flow.splice import is_close, open_seed, splice
from bench.harness import one_thread
from bench.registry import Options
from bench.row import Row, Target, make_row
from esper.errors import WrapRefused
from esper.kasmina.handle import ModelHandle
from esper.kasmina.wrap import wrap

NAME = "compat"
ALL = Target(1.0, at_least=True)
SHOWN = 5  # reasons for a 0
QUICK = ("mlp", "transformer")  # one that is exported as layers and one as a program
# package: what makes its architectures, and how it is installed
PACKAGES = {
    "transformers": (transformers_architectures, "pip install -e .[dev]"),
    "torch_geometric": (geometric_architectures, "pip install -e .[gnn]"),
}

Check = Callable[[Architecture], list[str]]


def rows(options: Options) -> Iterator[Row]:
    with one_thread():
        yield from _rows(options)


def _rows(options: Options) -> Iterator[Row]:
    chosen = {case: TORCH[case] for case in QUICK} if options.quick else architectures()
    for case, architecture in chosen.items():
        for metric, check in checks(architecture).items():
            yield _row(case, metric, check(architecture))
    for case, (make, name) in REFUSED.items():
        yield _row(case, "refused_by_name", refusal_differences(make, name))


def architectures() -> dict[str, Architecture]:
    """All that the installed packages have; one that is absent is named on standard error."""
    found = dict(TORCH)
    for package, (make, remedy) in PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            print(f"{NAME}: {package} is absent, its architectures are left out: {remedy}", file=sys.stderr)
        else:
            found |= make()
    return found


def checks(architecture: Architecture) -> dict[str, Check]:
    """Metric -> what finds out all that is wrong; the metric is 1 where that is nothing."""
    found: dict[str, Check] = {
        "dormant_identical": dormant_differences,
        "alive_matches_spliced": alive_differences,
        "grows_and_learns": functools.partial(at_some_sites, growth_differences),
        "fossilises": functools.partial(at_some_sites, fossil_differences),
    }
    if architecture.causal:
        found["never_looks_ahead"] = order_differences
    found["export_refused_by_name" if architecture.untraceable else "exports_to_torch"] = export_differences
    return found | {"unwraps": unwrap_differences}


def _row(case: str, metric: str, wrong: list[str]) -> Row:
    for what in wrong[:SHOWN]:
        print(f"{NAME}: {case}: {metric}: {what}", file=sys.stderr)
    return make_row(NAME, case, metric, float(not wrong), "0 or 1", target=ALL)


def dormant_differences(architecture: Architecture) -> list[str]:
    """By what one could tell the wrapped model from the plain one, in words; empty: by nothing."""
    plain, wrapped = architecture.model(), architecture.model()
    inputs = architecture.inputs()
    try:
        wrap(wrapped, architecture.targets, example=inputs)
    except WrapRefused as error:
        return [f"refused: {error}"]
    wrong = [] if plain.state_dict().keys() == wrapped.state_dict().keys() else ["state_dict keys"]
    for mode in MODES:
        theirs, ours = (seen(model, inputs, mode) for model in (plain, wrapped))
        wrong += [f"{mode}: {what}" for what in differences(theirs, ours)]
    return wrong


def alive_differences(architecture: Architecture) -> list[str]:
    """What is not as it must be with a seed alive at each of a few sites, in words; empty: nothing."""
    try:
        probe = wrap(architecture.model(), architecture.targets, example=architecture.inputs())
    except WrapRefused as error:
        return [f"refused: {error}"]
    return [wrong for name in some_sites(probe) for wrong in _alive_at(architecture, name)]


def _alive_at(architecture: Architecture, name: str) -> list[str]:
    plain, inputs = architecture.model(), architecture.inputs()
    handle: ModelHandle = wrap(architecture.model(), architecture.targets, example=inputs)
    branch = open_seed(handle, name)
    spliced = copy.deepcopy(plain)
    splice(spliced, handle.executor.sites[name], branch)
    wrong = []
    for mode in MODES:
        host, by_hand, ours = (seen(model, inputs, mode) for model in (plain, spliced, handle.model))
        if all(is_close(host[k], ours[k], 10 * TOLERANCE) for k in host if k.startswith("output")):
            wrong.append(f"{name}, {mode}: the seed does not reach the output")
        # one that is nothing but rounding, as a bias's gradient or a mean after a normalisation, is held to the largest
        floors = {kind: 1e-2 * _largest(by_hand, kind) for kind in ("output", "gradient", "buffer")}
        close = {k: is_close(v, ours[k], TOLERANCE, floors[k.partition(" ")[0]]) for k, v in by_hand.items()}
        wrong += [f"{name}, {mode}: {k}" for k, same in close.items() if not same]
    faults = [graft.fault for graft in handle.executor.grafts.values() if graft.fault]
    return wrong + faults


def _largest(tensors: Mapping[str, Tensor], kind: str) -> float:
    """Absolute value, over all of one kind; 0 for outputs, which are held to their own."""
    values = [v for k, v in tensors.items() if k.startswith(kind) and kind != "output" and v.is_floating_point()]
    return max((float(v.abs().max()) for v in values if v.numel()), default=0.0)


def refusal_differences(make: Callable[[], tuple[nn.Module, Any, Tensor]], name: str) -> list[str]:
    """What is wrong with wrap's refusal, which must name `name` and change nothing; empty: nothing."""
    model, targets, example = make()
    attributes, state = _attributes(model), copy.deepcopy(model.state_dict())
    try:
        wrap(model, targets, example=example)
    except WrapRefused as error:
        wrong = [] if name in str(error) else [f"does not name {name}: {error}"]
    else:
        return ["was wrapped"]
    wrong += [] if _attributes(model) == attributes else ["the model's attributes changed"]
    return wrong + [key for key, value in model.state_dict().items() if not torch.equal(value, state[key])]


def _attributes(model: nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize("case", TORCH)
def test_compat(benchmark, case):  # type: ignore[no-untyped-def]
    assert not benchmark.pedantic(lambda: dormant_differences(TORCH[case]), rounds=1)
