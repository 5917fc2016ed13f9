"""What the library says, as lines that people read: `esper library`."""

from collections.abc import Iterable, Sequence

from esper.api.common.v1 import interface_pb2, resource_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Conflict, NotFound

SHORT = 12  # digits of an id in a table; `esper library` takes any six or more that name one thing


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, right: frozenset[str] = frozenset()) -> str:
    """Columns as wide as what is in them, two spaces between; those named in `right` end together."""
    cells = [list(heads), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    sides = [">" if head in right else "<" for head in heads]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in cells
    )


def blueprints(found: Sequence[pb.Blueprint]) -> str:
    rows = [(one.blueprint_id[:SHORT], blueprint_status(one), one.title, one.family, one.author) for one in found]
    return table(("blueprint", "status", "title", "family", "author"), rows) if rows else "no blueprint"


def kernels(found: Sequence[pb.Kernel]) -> str:
    heads = ("kernel", "status", "title", "interface", "target", "parameters", "forward us", "peak", "tags")
    rows = [(*_kernel_cells(one), ", ".join(one.tags)) for one in found]
    right = frozenset({"parameters", "forward us", "peak"})
    return table(heads, rows, right=right) if rows else "no kernel"


def matches(reply: pb.SearchKernelsResponse) -> str:
    heads = ("score", "kernel", "title", "target", "pipeline", "why")
    rows = [
        (f"{m.score:.3f}", m.kernel.artifact_id[:SHORT], m.kernel.title, target(m.kernel), m.kernel.pipeline, m.reason)
        for m in reply.matches
    ]
    nothing = "no kernel for this interface with what was asked"
    return table(heads, rows) if rows else ": ".join(filter(None, (nothing, reply.empty_reason)))


def kernel(one: pb.Kernel) -> str:
    lines = {
        "kernel": one.artifact_id,
        "blueprint": f"{one.blueprint_id}  {one.title}",
        "status": _with_reason(kernel_status(one), one.status_reason),
        "interface": interface(one.interface),
        "target": f"{target(one)}, pipeline {one.pipeline}",
        "parameters": f"{one.parameter_count}",
        "forward": measured(one.forward_us_p50, "us"),
        "peak": measured(one.peak_bytes, "bytes"),
        "interest": measured(one.interest, ""),
        "risk": measured(one.risk, ""),
        "tags": ", ".join(one.tags) or "none",
        "report": one.report_name or "none",
        "files": f"{one.size_bytes} bytes",
        "stored": one.create_time.ToJsonString(),
    }
    return _lines(lines)


def blueprint(one: pb.Blueprint, its_kernels: Sequence[pb.Kernel]) -> str:
    lines = {
        "blueprint": one.blueprint_id,
        "title": f"{one.title}, family {one.family or 'none'}",
        "status": _with_reason(blueprint_status(one), one.status_reason),
        "author": one.author,
        "source": one.source or "none",
        "parents": _parents(one.parent_ids) or "none",
        "nodes": f"{len(one.graph.nodes)}, parameters {len(one.graph.parameters)}",
        "stored": one.create_time.ToJsonString(),
    }
    return f"{_lines(lines)}\n\n{kernels(its_kernels)}"


def lineage(found: Sequence[pb.LineageEntry]) -> str:
    rows = [
        (one.depth, one.blueprint_id[:SHORT], blueprint_status(one), one.title, one.author, _parents(one.parent_ids))
        for one in found
    ]
    return table(("depth", "blueprint", "status", "title", "author", "parents"), rows) if rows else "none"


def aliases(found: Sequence[pb.AliasEntry]) -> str:
    rows = [(one.alias, one.target_name) for one in found]
    return table(("alias", "points at"), rows) if rows else "no alias"


def curated(reply: pb.CurateLibraryResponse, *, dry_run: bool) -> str:
    rows = [
        (one.artifact_id[:SHORT], _status(one.previous_status), one.title, one.size_bytes, one.reason)
        for one in reply.actions
    ]
    done = "would be archived; --apply does it" if dry_run else "archived"
    total = f"{len(rows)} of {reply.kernels} kernels {done}; {reply.protected_kernels} protected"
    if not rows:
        return total
    heads = ("kernel", "was", "title", "bytes", "why")
    return f"{table(heads, rows, right=frozenset({'bytes'}))}\n{total}"


def verified(reply: pb.VerifyLibraryResponse) -> str:
    return f"{reply.entries} ledger entries, {reply.rows} rows and {reply.blobs} blobs are what the ledger says"


def only(name: str, found: Iterable[str]) -> str:
    """The one resource name that a shortened id stands for. Raises NotFound, Conflict."""
    names = sorted(set(found))
    if not names:
        raise NotFound(f"{name!r}: no alias, blueprint or kernel of this library is called or begins so")
    if len(names) > 1:
        raise Conflict(f"{name!r} begins {len(names)} ids: {', '.join(names[:5])}; give more digits")
    return names[0]


def kernel_status(one: pb.Kernel) -> str:
    return _status(one.status)


def blueprint_status(one: pb.Blueprint | pb.LineageEntry) -> str:
    return pb.BlueprintStatus.Name(one.status).removeprefix("BLUEPRINT_STATUS_")


def target(one: pb.Kernel) -> str:
    return resource_pb2.Target.Name(one.target).removeprefix("TARGET_").lower()


def interface(site: interface_pb2.Interface) -> str:
    """E.g. "map2d 64 float32", "tokens 128 bfloat16 causal"."""
    kind = interface_pb2.TensorKind.Name(site.kind).removeprefix("TENSOR_KIND_").lower()
    element = interface_pb2.ElementType.Name(site.element_type).removeprefix("ELEMENT_TYPE_").lower()
    return f"{kind} {site.channels} {element}" + (" causal" if site.causal else "")


def measured(reading: float, unit: str) -> str:
    return f"{reading:.6g} {unit}".rstrip() if reading else "not measured"


def _status(number: pb.KernelStatus.ValueType) -> str:
    return pb.KernelStatus.Name(number).removeprefix("KERNEL_STATUS_")


def _kernel_cells(one: pb.Kernel) -> tuple[object, ...]:
    figures = (one.parameter_count, f"{one.forward_us_p50:.1f}" if one.forward_us_p50 else "-", one.peak_bytes or "-")
    return (one.artifact_id[:SHORT], kernel_status(one), one.title, interface(one.interface), target(one), *figures)


def _parents(ids: Iterable[str]) -> str:
    return " ".join(parent[:SHORT] for parent in ids)


def _with_reason(status: str, reason: str) -> str:
    return f"{status}: {reason}" if reason else status


def _lines(fields: dict[str, str]) -> str:
    return "\n".join(f"{name:11} {value}" for name, value in fields.items())
