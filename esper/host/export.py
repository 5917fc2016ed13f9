"""Write a grown model as plain torch source with its weights: no Esper needed to use it.

The forward is traced symbolically (torch.fx), so grafts become ordinary lines of it:
layers of torch.nn stay layers, blueprints become small classes, anything else is traced
through, and the result can be trained. A forward that has branches on shapes is traced by
torch.export instead, as torch's operations on the weights, for evaluation only. The
result is run against the model before it is given out.
"""

import functools
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from esper.errors import PreconditionFailed
from esper.host.program import (
    VARYING,
    Program,
    conditions_alone,
    described,
    fossil_state,
    other_sizes,
    resized,
    trace_program,
    widened,
)
from esper.host.source import constructor_lines, state_of, write_layers, write_program
from esper.host.trace import Example, entry_of, plain_output, trace

Same = Callable[[Any, Any], bool]
Rewrite = Callable[[fx.Graph, nn.Module], None]  # changes a traced graph and the module that holds its tensors

# Of each dtype, how far a program may be from the model relative to the largest value: the model takes other
# kernels where it sees that a mask hides nothing, which a trace for every shape cannot know.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class Exported:
    """Source of `model.py` and the tensors of `model.pt`.

    `reason` is empty where layers were written. Where a program for evaluation was, it says why no layers
    could be, and `inputs` for which inputs the program is good.
    """

    source: str
    state: dict[str, Tensor]
    inputs: tuple[str, ...] = ()
    reason: str = ""

    @property
    def evaluation_only(self) -> bool:
        return bool(self.reason)

    def description(self) -> str:
        """Which of the two was written, for a reader."""
        if not self.evaluation_only:
            return "layers, which can be trained further"
        lines = "".join(f"\n    {line}" for line in self.inputs)
        return f"a program for evaluation, good for inputs with{lines}\nbecause {self.reason}"


def export_model(
    model: nn.Module,
    example: Example,
    title: str,
    rewrite: Rewrite | None = None,
    computed_in: torch.dtype | None = None,
) -> Exported:
    """`model`, traced in eval mode, as plain torch: as layers or, where that is not possible, for evaluation.

    `example` are its arguments, by position or by name. The source takes these arguments; others are the
    defaults they have. Layers must agree with the model on `example` bit for bit, a program for evaluation
    within rounding and, where sizes may vary, at other sizes too. An output class of another package is
    written as a dict of its fields, or a tuple where it names none. With `rewrite`, the source must agree
    with the graph that it leaves instead, and how far that is from the model is for the caller to measure.
    `computed_in` is the dtype whose rounding the outputs carry, where it is not their own.

    Raises PreconditionFailed for a model that can be written in neither way, with the place and both reasons.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        try:
            return _as_layers(model, example, title, rewrite)
        except PreconditionFailed as error:
            same = close if computed_in is None else functools.partial(close, computed_in=computed_in)
            return _as_program(model, example, title, error, rewrite, same)
    finally:
        for module, mode in training.items():
            module.training = mode


def _as_layers(model: nn.Module, example: Example, title: str, rewrite: Rewrite | None) -> Exported:
    graph, held = trace(model, example)
    model = _rewritten(model, graph, held, rewrite)
    classes: dict[str, str] = {}
    lines = constructor_lines(held, graph, classes)
    source = write_layers(title, classes, lines, graph, type(model).__name__)
    state = state_of(held, graph)
    _prove(_made(source, state, type(model).__name__), model, example, _same)
    return Exported(source, state)


def _rewritten(model: nn.Module, graph: fx.Graph, held: nn.Module, rewrite: Rewrite | None) -> nn.Module:
    """What the source has to agree with."""
    if rewrite is None:
        return model
    rewrite(graph, held)
    return fx.GraphModule(held, graph, type(model).__name__).eval()


def _as_program(
    model: nn.Module,
    example: Example,
    title: str,
    why_no_layers: PreconditionFailed,
    rewrite: Rewrite | None,
    same: Same,
) -> Exported:
    """The program for the widest choice of sizes that says what the model says."""
    reason: PreconditionFailed = why_no_layers
    for varying in VARYING:
        try:
            entry, named = entry_of(model, example)
            traced = named if varying is VARYING[-1] else widened(named)
            program = trace_program(entry, traced, varying)
        except PreconditionFailed as error:
            reason = error
            continue
        wanted = _rewritten(model, program.graph, program.held, rewrite)
        for each in _with_and_without_alone(entry, model, program, traced, example):
            try:
                return _written(each, wanted, example, traced, title, str(why_no_layers), same)
            except PreconditionFailed as error:
                reason = error
    raise PreconditionFailed(f"{why_no_layers}; nor as a program for evaluation by torch.export ({reason})") from reason


def _written(
    program: Program,
    model: nn.Module,
    example: Example,
    traced: Mapping[str, Any],
    title: str,
    reason: str,
    same: Same,
) -> Exported:
    """A program's source and state. Raises PreconditionFailed where they say something else than the model."""
    inputs, checks = described(program, traced)
    extra = fossil_state(program.held)
    lines = constructor_lines(program.held, program.graph, {}, extra)
    source = write_program(title, inputs, checks, lines, program.graph)
    state = state_of(program.held, program.graph, extra)
    made = _made(source, state, type(model).__name__)
    _prove(made, model, example, same)
    for other in other_sizes(program, traced):
        again = _like(example, other)
        if _accepts(made, again) and _takes(model, again):
            _prove(made, model, again, same)
    return Exported(source, state, tuple(inputs), reason)


def _accepts(made: nn.Module, example: Example) -> bool:
    """Whether a program's own check lets an example in."""
    check: Callable[..., None] = made._check  # type: ignore[assignment]  # it is in the source
    try:
        check(**example) if isinstance(example, Mapping) else check(*example)
    except ValueError:
        return False
    return True


def _takes(model: nn.Module, example: Example) -> bool:
    try:
        _leaves(model, example)
    except Exception:  # user code, which need not take other sizes
        return False
    return True


def _with_and_without_alone(
    entry: nn.Module, model: nn.Module, program: Program, traced: Mapping[str, Any], example: Example
) -> Iterator[Program]:
    """The program, first good for a batch of one too where such a one can be traced, then for more than one only."""
    if program.domain.batch:
        single = resized(program, traced, program.domain.batch, 1)
        if _takes(model, _like(example, single)):
            try:
                alone = conditions_alone(entry, single, program.domain)
                yield Program(program.graph, program.held, program.domain, alone)
            except PreconditionFailed:
                pass  # then there must be more
    yield program


def _like(example: Example, named: Mapping[str, Any]) -> Example:
    """Arguments by name as the example has them: by name or by position."""
    return named if isinstance(example, Mapping) else tuple(named.values())


def _made(source: str, state: dict[str, Tensor], name: str) -> nn.Module:
    try:
        made = run_source(source)
        made.load_state_dict(state)
    except Exception as error:  # source of a graph that says something else than the model may fail in any way
        raise _does_not_run(name, error) from error
    return made.eval()


def _prove(made: nn.Module, model: nn.Module, example: Example, same: Same) -> None:
    """Run both and compare. Raises PreconditionFailed where they do not say the same."""
    name = type(model).__name__
    try:
        got = _leaves(made, example)
    except Exception as error:  # as above
        raise _does_not_run(name, error) from error
    want = _leaves(model, example)
    if len(got) != len(want) or not all(map(same, got, want)):
        pairs = [(a, b) for a, b in zip(got, want, strict=False) if isinstance(a, Tensor) and isinstance(b, Tensor)]
        raise PreconditionFailed(
            f"the plain source of {name} gives other outputs (largest difference {_largest(pairs):.3g}); "
            "its forward depends on something a trace does not see"
        )


def _does_not_run(name: str, error: Exception) -> PreconditionFailed:
    return PreconditionFailed(
        f"the plain source of {name} does not run ({type(error).__name__}: {error}); its forward depends on "
        "something a trace does not see"
    )


def close(a: Any, b: Any, computed_in: torch.dtype | None = None) -> bool:
    """Whether two leaves are the same but for rounding, that of `computed_in` where it is not their own dtype's."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and a.dtype in _ROUNDING):
        return _same(a, b)
    a, b = a.detach(), b.detach()
    largest = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
    bound = _ROUNDING[computed_in or a.dtype]
    return a.shape == b.shape and torch.allclose(a, b, rtol=bound, atol=bound * largest, equal_nan=True)


def _leaves(model: nn.Module, example: Example) -> list[Any]:
    with torch.no_grad():
        output = model(**example) if isinstance(example, Mapping) else model(*example)
    return [leaf for leaf in _pytree.tree_leaves(plain_output(output)) if leaf is not None]


def _same(a: Any, b: Any) -> bool:
    both = isinstance(a, Tensor) and isinstance(b, Tensor)
    return a.dtype == b.dtype and torch.equal(a, b) if both else type(a) is type(b) and bool(a == b)


def _largest(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Largest difference between tensors of one shape."""
    fitting = [(a.double() - b.double()).abs().max() for a, b in pairs if a.shape == b.shape and a.numel()]
    return max((float(d) for d in fitting), default=float("nan"))


def run_source(source: str) -> nn.Module:
    """A fresh `Model` of exported source."""
    space: dict[str, Any] = {"__name__": "exported_model"}
    exec(compile(source, "model.py", "exec"), space)
    model: nn.Module = space["Model"]()
    return model


def saved(state: Mapping[str, Tensor]) -> bytes:
    """The bytes of model.pt."""
    written = io.BytesIO()
    torch.save(dict(state), written)
    return written.getvalue()
