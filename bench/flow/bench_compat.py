"""Which architectures Esper can grow: dormant it changes nothing, alive it computes what a hand-written module would.

Every row is 1 or 0. `dormant_identical`: outputs in train, in eval and without grad, gradients,
buffers and state_dict keys of the wrapped model equal the plain model's bit for bit.
`alive_matches_spliced`: with a non-zero seed at alpha 1 the outputs in all three modes differ from
the host's, and they and the gradients are those of a copy into which the branch was spliced by hand.
`refused_by_name`: what cannot carry seeds is refused with its name.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bench.flow.architectures import TORCH, Architecture, transformers_architectures
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
MODES = ("train", "eval", "no_grad")
SITES = 3  # tried alive per architecture, over its depth
TOLERANCE = 1e-4  # of the largest value
SHOWN = 5  # reasons for a 0


def rows(options: Options) -> Iterator[Row]:
    with one_thread():
        yield from _rows(options)


def _rows(options: Options) -> Iterator[Row]:
    for case, architecture in (TORCH if options.quick else architectures()).items():
        yield _row(case, "dormant_identical", dormant_differences(architecture))
        yield _row(case, "alive_matches_spliced", alive_differences(architecture))
    for case, (make, name) in REFUSED.items():
        yield _row(case, "refused_by_name", refusal_differences(make, name))


def architectures() -> dict[str, Architecture]:
    return TORCH | transformers_architectures()


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
        wrong += [f"{mode}: {k}" for k in theirs.keys() ^ ours.keys()]
        wrong += [f"{mode}: {k}" for k in theirs.keys() & ours.keys() if not torch.equal(theirs[k], ours[k])]
    return wrong


def alive_differences(architecture: Architecture) -> list[str]:
    """What is not as it must be with a seed alive at each of a few sites, in words; empty: nothing."""
    try:
        probe = wrap(architecture.model(), architecture.targets, example=architecture.inputs())
    except WrapRefused as error:
        return [f"refused: {error}"]
    names = list(probe.sites)
    chosen = {names[i * (len(names) - 1) // max(1, SITES - 1)] for i in range(SITES)}
    return [wrong for name in sorted(chosen) for wrong in _alive_at(architecture, name)]


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
        # a gradient that is nothing but rounding, as of a bias before a normalisation, is held to the largest one
        floor = max((float(v.abs().max()) for k, v in by_hand.items() if k.startswith("gradient")), default=0.0)
        wrong += [f"{name}, {mode}: {k}" for k in by_hand if not is_close(by_hand[k], ours[k], TOLERANCE, 1e-2 * floor)]
    faults = [graft.fault for graft in handle.executor.grafts.values() if graft.fault]
    return wrong + faults


def seen(model: nn.Module, inputs: Mapping[str, Any], mode: str) -> dict[str, Tensor]:
    """Outputs and buffers by name, and gradients where the mode has them, from the same state of the generators."""
    torch.manual_seed(3)
    model.train(mode == "train")
    model.zero_grad(set_to_none=True)
    with torch.set_grad_enabled(mode != "no_grad"):
        leaves = [leaf for leaf in _pytree.tree_leaves(model(**inputs)) if isinstance(leaf, Tensor)]
    found = {f"output {i}": leaf.detach() for i, leaf in enumerate(leaves)}
    if mode != "no_grad":
        sum(leaf.square().mean() for leaf in leaves if leaf.requires_grad).backward()  # type: ignore[union-attr]
        grown = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and "esper_" not in n}
        found |= {f"gradient of {n}": gradient.clone() for n, gradient in grown.items()}
    return found | {f"buffer {n}": buffer.clone() for n, buffer in model.named_buffers() if "esper_" not in n}


def refusal_differences(make: Callable[[], tuple[nn.Module, Any, Tensor]], name: str) -> list[str]:
    """What is wrong with wrap's refusal, which must name `name`; empty: nothing."""
    model, targets, example = make()
    try:
        wrap(model, targets, example=example)
    except WrapRefused as error:
        return [] if name in str(error) else [f"does not name {name}: {error}"]
    return ["was wrapped"]


@pytest.mark.parametrize("case", TORCH)
def test_compat(benchmark, case):  # type: ignore[no-untyped-def]
    assert not benchmark.pedantic(lambda: dormant_differences(TORCH[case]), rounds=1)
