"""TorchScript as an artifact carries it: one function of the input and the parameters, no state of its own.

torch's archive holds two things that differ between equal compilations: a random
serialisation id, and source positions for debuggers. Without them, and with fixed
times in the zip, the same source gives the same bytes anywhere.
"""

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from esper.errors import Corrupt, InvalidRequest

CompiledForm = Callable[..., Tensor]

ENTRY = "forward"
_ROOT = "archive"
_LEFT_OUT = re.compile(r".*\.debug_pkl|.*/\.data/serialization_id")
_FILES = ("aten::from_file", "aten::save", "aten::load")
ENTRY_TIME = (1980, 1, 1, 0, 0, 0)


def save_script(source: str) -> bytes:
    """Compile TorchScript source of `def forward(x: Tensor, ...) -> Tensor` to an archive.

    `torch.` in the source is the aten namespace, as emit.torchscript writes it. Raises InvalidRequest for
    source that does not compile, or has no such function.
    """
    unit = torch._C.CompilationUnit()
    try:
        unit.define(source, _resolve)
        function = unit.find_function(ENTRY)
    except RuntimeError as error:
        raise InvalidRequest(f"the source is no TorchScript: {error}") from error
    if function is None:
        raise InvalidRequest(f"the source defines no function {ENTRY!r}")
    archive: bytes = function.save_to_buffer({})
    return normalise(archive)


def _resolve(name: str) -> Any:
    """What a name outside the source's own means."""
    return torch.ops.aten if name == "torch" else None


def normalise(archive: bytes) -> bytes:
    """A TorchScript archive without what differs between equal ones; entries sorted, stored, of one date."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in sorted(old.namelist()):
            if _LEFT_OUT.fullmatch(name):
                continue
            entry = zipfile.ZipInfo(f"{_ROOT}/{name.partition('/')[2]}", ENTRY_TIME)
            entry.create_system, entry.external_attr = 3, 0o600 << 16  # the same on every system
            new.writestr(entry, old.read(name))
    return out.getvalue()


def load_script(archive: bytes, parameter_count: int) -> CompiledForm:
    """The function of an archive whose digest has been checked, to be called as form(x, *parameters).

    Raises Corrupt where torch cannot read it, InvalidRequest where it has state of its own, takes another
    number of tensors, or uses an operator that reaches beyond the tensors it is given.
    """
    try:
        module = torch.jit.load(io.BytesIO(archive))
        schema = module.forward.schema
    except (RuntimeError, AttributeError, ValueError) as error:
        raise Corrupt(f"{len(archive)} bytes are no TorchScript with a {ENTRY}: {str(error)[:300]}") from error
    owned = [name for name, _ in (*module.named_parameters(), *module.named_buffers(), *module.named_children())]
    if owned:
        raise InvalidRequest(f"the TorchScript owns {', '.join(owned)[:200]}; a form owns nothing, a seed does")
    taken = [str(argument.type) for argument in schema.arguments[1:]]
    given = [str(value.type) for value in schema.returns]
    if taken != ["Tensor"] * (1 + parameter_count) or given != ["Tensor"]:
        raise InvalidRequest(
            f"the TorchScript is ({', '.join(taken)}) -> {', '.join(given)}; "
            f"it must take the input and {parameter_count} parameters, and return one tensor"
        )
    if reaching := sorted(kind for kind in set(_operators(module.inlined_graph)) if _reaches_out(kind)):
        raise InvalidRequest(f"the TorchScript uses {', '.join(reaching)[:200]}; a form computes on tensors, no more")
    form: CompiledForm = module.forward
    return form


def _operators(block: Any) -> Iterator[str]:
    """Kinds of all nodes of a graph, those of branches and loops included."""
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from _operators(inner)


def _reaches_out(kind: str) -> bool:
    """Whether an operator may touch files, or is not torch's own."""
    return kind.partition("::")[0] not in ("aten", "prim") or kind in _FILES
