"""Fold what the services answer into the health of the system. Pure."""

from collections.abc import Iterable, Mapping

from esper.api.nissa.v1 import observability_pb2 as pb

OWN = "nissa"


def fold(services: Iterable[pb.ServiceHealth], failures: Mapping[str, str]) -> pb.GetSystemHealthResponse:
    """All services by component, one row each; healthy where there are some and every one serves.

    A component that answered twice serves if both did. `failures`: runs whose files Nissa
    could not write, and why; while there are some Nissa does not count as serving.
    """
    rows: dict[str, pb.ServiceHealth] = {}
    for service in services:
        rows[service.component] = _both(rows.get(service.component), service)
    rows[OWN] = _own(rows.get(OWN), failures)
    ordered = [rows[component] for component in sorted(rows)]
    return pb.GetSystemHealthResponse(healthy=all(row.serving for row in ordered), services=ordered)


def _both(one: pb.ServiceHealth | None, other: pb.ServiceHealth) -> pb.ServiceHealth:
    if one is None:
        return other
    words = "; ".join(dict.fromkeys(part for part in (one.detail, other.detail) if part))
    return pb.ServiceHealth(component=other.component, serving=one.serving and other.serving, detail=words)


def _own(row: pb.ServiceHealth | None, failures: Mapping[str, str]) -> pb.ServiceHealth:
    """Nissa's row: it answers, since it is the one who says this."""
    row = row or pb.ServiceHealth(component=OWN, serving=True, detail="SERVING")
    if not failures:
        return row
    words = "; ".join(f"run {run_id}: {why}" for run_id, why in sorted(failures.items()))
    return _both(row, pb.ServiceHealth(component=OWN, serving=False, detail=words))
