"""What the joined kernels of tests/tezzeret/fusable.py blend, by Triton's interpreter: one JSON object.

TRITON_INTERPRET=1 python -m tests.tezzeret.interpreted_joins FOLDER
"""

import functools
import json
import sys
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings

from esper.artifact.agree import difference, differences, draw_weights, outcome, tensor_names
from esper.artifact.fused import FusedForm
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.lower import lower
from esper.blueprint.plan import plan
from esper.errors import KernelFault
from esper.host.graft import Graft, Strategy
from esper.host.layout import Layout
from esper.ops import blend
from esper.tezzeret import interpreted
from tests.tezzeret.fusable import CHAIN, GRAPHS, INTERFACES, JOINED_CASES, last_is_fused, random_graphs
from tests.tezzeret.interpreted_graphs import SHAPES, STATE, form_of

MUTANTS = {
    "output": ("host + alpha * v", "host + 1.01 * alpha * v"),
    "input gradient": ("    d11 = alpha * d11\n", ""),
    "input gradient, convex": ("(d11 - alpha * d11)", "(d11 + alpha * d11)"),
    "gradient of alpha": ("d11 * (v11 - host)", "d11 * v11"),
    "alpha 0": ("host + alpha * v", "host + alpha * v + 1e-7"),
}
BLENDS = {"residual": torch.addcmul, "convex": torch.lerp}


def joined_of(form: FusedForm, convex: bool):
    return functools.partial(form.joined, convex=convex)


def by_the_op(form: FusedForm, convex: bool, interface: Interface):
    """What the joined kernels stand for: the form, then the op `blend`."""
    dim = Layout(interface.kind).channel_dim
    return lambda h, a, *p: blend(h, [form(h, *p)], a.reshape(1), channel_dim=dim, convex=convex)


def drawn(graph, interface: Interface, generator: torch.Generator):
    exact = lower(graph, Interface(interface.kind, interface.channels, torch.float64, interface.causal))
    return exact, [w.to(interface.dtype) for w in draw_weights(exact, generator)]


def compared(name: str, interface: Interface, folder: Path) -> dict[str, float]:
    """Tensor -> largest difference from float64 over its largest value, over all shapes, by both ways of blending."""
    generator = torch.Generator().manual_seed(1)
    exact, weights = drawn(GRAPHS[name], interface, generator)
    form = form_of(GRAPHS[name], interface, folder, tile_rows=16)
    first, second, *others = tensor_names(exact)
    alpha, seen = torch.tensor(0.3), dict[str, float]()
    for batch, positions in SHAPES[interface.kind.position_dims]:
        h = interface.example(batch, *positions, generator=generator)
        for convex, blended in enumerate(BLENDS.values()):
            wide = [alpha.double(), *(w.double() for w in weights)]
            wanted = outcome(lambda x, a, *p: blended(x, exact.functional(p, x), a), h.double(), wide)  # noqa: B023
            got = [tensor.double() for tensor in outcome(joined_of(form, bool(convex)), h, [alpha, *weights])]
            gaps = differences(got, wanted)
            # alpha's is a sum of as many terms as there are values: beside one that cancels stands what it usually is
            usual = ((wanted[0] - h.double()).norm() / alpha).item()
            gaps[2] = difference(got[2], wanted[2], usual)
            for tensor, gap in zip((first, second, "alpha", *others), gaps, strict=True):
                seen[tensor] = max(seen.get(tensor, 0.0), gap)
    return seen


def at_the_ends(name: str, interface: Interface, folder: Path) -> dict[str, bool]:
    """Whether alpha 0 leaves the host as it is and convex alpha 1 is the branch, bit for bit; alpha is followed."""
    generator = torch.Generator().manual_seed(2)
    _, weights = drawn(GRAPHS[name], interface, generator)
    form = form_of(GRAPHS[name], interface, folder)
    h = interface.example(2, *(3,) * interface.kind.position_dims, generator=generator)
    table = torch.zeros(3)  # a row of a seed's table, which starts anywhere
    alpha = table[1]
    found = {f"{how} 0": torch.equal(form.joined(h, alpha, *weights, convex=how == "convex"), h) for how in BLENDS}
    table.fill_(1.0)
    found["convex 1"] = torch.equal(form.joined(h, alpha, *weights, convex=True), form(h, *weights))
    found["residual 1"] = not torch.equal(form.joined(h, alpha, *weights, convex=False), h)
    return found


def dormant(folder: Path) -> dict[str, bool]:
    """Whether joined kernels of a seed that is not at work leave what they would write as it was."""
    untouched = {}
    for state in (STATE, 0, 62, 63, 255):
        form = form_of(CHAIN, INTERFACES[0], folder, torch.tensor([state], dtype=torch.uint8))
        written: list[torch.Tensor] = []
        form._launch = functools.partial(_poisoned, form._launch, written)
        h = INTERFACES[0].example(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
        leaves = [torch.tensor(0.3, requires_grad=True), *(torch.ones(7, requires_grad=True) for _ in range(2))]
        form.joined(h, *leaves, convex=True).sum().backward()
        assert len(written) == 5
        untouched[str(state)] = all(bool((tensor == 7).all()) for tensor in written)
    return untouched


WRITTEN = {
    "region1_joined_forward": ("v11_ptr",),
    "region1_joined_backward": ("d0_ptr", "p0_sums_ptr", "dhost_ptr", "alpha_sums_ptr"),
}


def _poisoned(launch, written, name, programs, arguments):
    """Launch over results that hold 7s, and keep them."""
    for one in WRITTEN[name]:
        written.append(arguments[one].fill_(7))
    launch(name, programs, arguments)


def grafted(folder: Path) -> dict[str, list[str]]:
    """Kernels that a graft launches, forward and backward, by how it is grafted; its values are the body's, checked."""
    interface = Interface(Kind.TOKENS, 7)
    seen: dict[str, list[str]] = {}
    cases = {
        "residual": (Strategy.RESIDUAL, None, "candidate"),
        "convex": (Strategy.CONVEX, None, "candidate"),
        "gated": (Strategy.GATED, None, "candidate"),
        "span": (Strategy.RESIDUAL, (1, 8), "candidate"),
        "guarded": (Strategy.RESIDUAL, None, "forward"),  # on a CPU, where a guard looks at the branch
    }
    for name, (strategy, span, call) in cases.items():
        form = form_of(CHAIN, interface, folder)
        form._launch = functools.partial(_noted, form._launch, seen.setdefault(name, []))
        alpha = torch.tensor([0.4, 0.6], requires_grad=True)
        body = lower(CHAIN, interface)
        with torch.no_grad():
            for own, value in zip(
                body.ordered_parameters(), draw_weights(body, torch.Generator().manual_seed(3)), strict=True
            ):
                own.copy_(value)
        graft = Graft(body, Layout(Kind.TOKENS), alpha[1], span=span, strategy=strategy)
        if strategy is Strategy.GATED:
            torch.nn.init.constant_(graft.gamma, 0.5)
        host = torch.randn(2, 5, 7 if span is None else 9, generator=torch.Generator().manual_seed(4))
        outcomes = []
        for one in (form, None):
            graft.use_form(one)
            h = host.clone().requires_grad_()
            out = getattr(graft, call)(h)
            leaves = [h, alpha, *graft.parameters()]
            outcomes.append([out, *torch.autograd.grad((out * out).sum(), leaves)])
        for got, want in zip(*outcomes, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    return seen


def _noted(launch, seen, name, programs, arguments):
    seen.append(name)
    launch(name, programs, arguments)


def mutants(folder: Path) -> dict[str, str]:
    """What the forge's check says of kernels that blend otherwise than the op."""
    interface = Interface(Kind.TOKENS, 8)
    concrete, said = plan(CHAIN, interface), {}
    form_of(CHAIN, interface, folder)
    source = folder / "triton/region1.py"
    right = source.read_text()
    for name, (before, after) in MUTANTS.items():
        assert right.count(before) == 1
        source.write_text(right.replace(before, after))
        try:
            interpreted._joined(CHAIN, interface, interpreted.fused(folder, concrete))
            said[name] = ""
        except KernelFault as error:
            said[name] = str(error)
    return said


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(drawn_graph=random_graphs())
def joining_is_the_form_and_then_the_op(drawn_graph) -> None:
    """Of any graph, in value and every gradient; where nothing fused makes the last value, it is not offered."""
    graph, interface = drawn_graph
    generator = torch.Generator().manual_seed(5)
    _, weights = drawn(graph, interface, generator)
    h = interface.example(2, *(3,) * interface.kind.position_dims, generator=generator)
    with tempfile.TemporaryDirectory() as name:
        form = form_of(graph, interface, Path(name))
        alpha = torch.tensor(0.7)
        fused = last_is_fused(graph, interface)
        assert form.joins(h, alpha) == fused
        for convex in (False, True) if fused else ():
            wanted = outcome(by_the_op(form, convex, interface), h, [alpha, *weights])
            got = outcome(joined_of(form, convex), h, [alpha, *weights])
            assert max(differences(got, wanted)) <= 1e-4
            if convex:
                one = torch.ones(())
                assert torch.equal(form.joined(h, one, *weights, convex=True), form(h, *weights))
            assert torch.equal(form.joined(h, torch.zeros(()), *weights, convex=convex), h)
    TRIED.append(fused)


TRIED: list[bool] = []

if __name__ == "__main__":
    home = Path(sys.argv[1])
    named = {f"{n} {i}": (n, i, home / f"case{at}") for at, (n, i) in enumerate(JOINED_CASES)}
    found = {
        "differences": {name: compared(*case) for name, case in named.items()},
        "ends": {name: at_the_ends(*case) for name, case in named.items()},
        "dormant": dormant(home / "dormant"),
        "grafted": grafted(home / "grafted"),
        "mutants": mutants(home / "mutants"),
    }
    joining_is_the_form_and_then_the_op()
    print(json.dumps({**found, "tried": [TRIED.count(True), TRIED.count(False)]}))
