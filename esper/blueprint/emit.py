"""Write a blueprint as plain torch source, the same calls that lower.py makes.

`F` is torch.nn.functional. Every `F.` call used is also an aten operator with the same
arguments, so that the function with `F.` replaced by `torch.` is TorchScript.
"""

import keyword
import re

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.initialise import uniform_bound
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph, Initialiser, Parameter
from esper.blueprint.plan import Plan, plan
from esper.errors import InvalidRequest

IMPORTS = "import torch\nimport torch.nn.functional as F\nfrom torch import Tensor, nn\n"
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TAKEN = {"x", "torch", "self", *keyword.kwlist, "print", "range", "len", "int", "float", "bool", "str"}


def emit_function(graph: Graph, interface: Interface, name: str) -> str:
    """Source of `def name(x: Tensor, p_<parameter>: Tensor, ...) -> Tensor`, parameters in canonical order.

    It needs `torch`, `F` and `Tensor` in scope. Raises InvalidBlueprint where `graph` cannot be
    lowered for `interface`, InvalidRequest where `name` is no identifier.
    """
    _check_identifier(name)
    concrete = plan(graph, interface)
    names = [f"p_{parameter}" for parameter in concrete.parameter_names]
    arguments = ", ".join(f"{argument}: Tensor" for argument in ["x", *names])
    head = f"def {name}({arguments}) -> Tensor:"
    if len(head) > 110:
        lines = "".join(f"    {argument}: Tensor,\n" for argument in ["x", *names])
        head = f"def {name}(\n{lines}) -> Tensor:"
    return f"# blueprint {blueprint_id(graph)} for {interface}\n{head}\n" + _body(concrete, names, "    ")


def torchscript(source: str) -> str:
    """emit_function's source as TorchScript.

    `torch` there is the aten namespace, as inside a TorchScript archive. To compile the text
    from Python, resolve it so: `define(text, lambda name: torch.ops.aten if name == "torch" else None)`.
    """
    return re.sub(r"\bF\.", "torch.", source)


def emit_module(graph: Graph, interface: Interface, class_name: str) -> str:
    """Source of a self-contained nn.Module: `IMPORTS`, then the class, with the IR's parameter names.

    Parameters start from the IR's initialisers, drawn from torch's default generator.
    """
    _check_identifier(class_name)
    concrete = plan(graph, interface)
    axes = {0: "", 1: ", L", 2: ", H, W"}[interface.kind.position_dims]
    layout = f"[B, C{axes}]" if interface.kind.channels_first else "[B, T, C]" if axes else "[B, C]"
    lines = [
        f"class {class_name}(nn.Module):",
        f'    """Blueprint {blueprint_id(graph)[:16]} for {interface}: {layout} to the same shape."""',
        "",
        "    def __init__(self) -> None:",
        "        super().__init__()",
        *(_assignment(p.name, _value(p, s, interface)) for p, s in _parameters(concrete)),
        "",
        "    def forward(self, x: Tensor) -> Tensor:",
    ]
    body = _body(concrete, [f"self.{name}" for name in concrete.parameter_names], "        ")
    return IMPORTS + "\n\n" + "\n".join(lines) + "\n" + body


def _check_identifier(name: str) -> None:
    if not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name):
        raise InvalidRequest(f"{name!r} is no name for a function or class; it must match {_IDENTIFIER.pattern}")


def _parameters(concrete: Plan) -> list[tuple[Parameter, tuple[int, ...]]]:
    return list(zip(concrete.form.parameters, concrete.shapes, strict=True))


def _assignment(name: str, value: str) -> str:
    line = f"        self.{name} = nn.Parameter({value})"
    return line if len(line) <= 110 else f"        self.{name} = nn.Parameter(\n            {value}\n        )"


def _value(parameter: Parameter, shape: tuple[int, ...], interface: Interface) -> str:
    sizes = ", ".join(map(str, shape))
    initialiser = parameter.initialiser
    if initialiser in (Initialiser.ZEROS, Initialiser.ONES):
        return f"torch.{initialiser.value}({sizes}, dtype={interface.dtype})"
    bound = uniform_bound(initialiser, shape)
    return f"torch.empty({sizes}, dtype={interface.dtype}).uniform_({-bound!r}, {bound!r})"


def _body(concrete: Plan, parameters: list[str], indent: str) -> str:
    """One assignment per step and the return. Locals carry the nodes' names where these are free."""
    names, taken, lines = ["x"], {*_TAKEN, *parameters}, list[str]()
    for step, form in zip(concrete.form.steps, concrete.forms(), strict=True):
        local = _free(step.node.name, taken)
        arguments = [names[i] for i in step.inputs] + [parameters[i] for i in step.parameters]
        words: dict[str, str] = {}
        for word, source in form.before:
            words[word] = _free(f"{local}_{word}", taken)
            lines.append(_line(words[word], source, arguments, words, indent))
        lines.append(_line(local, form.source, arguments, words, indent))
        names.append(local)
    return "".join(lines) + f"{indent}return {names[-1]}\n"


def _free(name: str, taken: set[str]) -> str:
    """The name, or a longer one that is not taken; it is taken from then on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _line(name: str, source: str, arguments: list[str], words: dict[str, str], indent: str) -> str:
    expression = source.format(*arguments, **words).replace("\n", f"\n{indent}")
    return f"{indent}{name} = {expression}\n"
