"""graph.pt2: the lowering as torch.export writes it, for people and other tools. Esper never loads one.

torch's archive holds positions in source files, a random serialisation id and pickled sample inputs. Without them, with
entries sorted and of one date, the same blueprint gives the same bytes, and there is no pickle in the file.
"""

import io
import re
import zipfile

import torch

from esper.artifact.script import ENTRY_TIME
from esper.blueprint.lower import Lowered
from esper.errors import KernelFault

_LEFT_OUT = re.compile(r".*/\.data/serialization_id")
_EMPTIED = re.compile(r".*/sample_inputs/.*")  # torch's reader takes an empty one for none
_POSITIONS_IN_SOURCE = ("stack_trace", "nn_module_stack")
_BATCH, _POSITIONS = 2, 4  # sizes to trace with; both stay open in the graph


def export_graph(module: Lowered) -> bytes:
    """The archive; batch and positions are open, channels fixed. Raises KernelFault where torch cannot export it."""
    interface = module.interface
    shape = interface.shape(_BATCH, *(_POSITIONS,) * interface.kind.position_dims)
    h = torch.zeros(shape, dtype=interface.dtype)
    channel_dim = interface.channel_dim % h.ndim
    sizes = {dim: torch.export.Dim.AUTO for dim in range(h.ndim) if dim != channel_dim}
    written = io.BytesIO()
    try:
        program = torch.export.export(module, (h,), dynamic_shapes=(sizes,))
        for node in program.graph.nodes:
            for name in _POSITIONS_IN_SOURCE:
                node.meta.pop(name, None)
        torch.export.save(program, written)
    except Exception as error:  # whatever torch raises: the design is fine, its export is not
        raise KernelFault(f"torch.export raised {type(error).__name__}: {str(error)[:500]}; ask for fast") from error
    return _normalise(written)


def _normalise(archive: io.BytesIO) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in sorted(old.namelist()):
            if _LEFT_OUT.fullmatch(name):
                continue
            entry = zipfile.ZipInfo(name, ENTRY_TIME)
            entry.create_system, entry.external_attr = 3, 0o600 << 16
            new.writestr(entry, b"" if _EMPTIED.fullmatch(name) else old.read(name))
    return out.getvalue()
