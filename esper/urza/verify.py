"""Whether everything the library keeps is what its ledger says.

The ledger's chain is checked, and from its entries each blueprint, kernel, alias and report is made
again and compared with its row: what is missing, altered or of unknown origin is named. A kernel
is made from its body, whose digest is its id; a blueprint from its graph, whose digest its entry
has. Remembered requests, events and counts of uses have no entry and are not checked.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from esper.api.common.v1.artifact_pb2 import ArtifactManifest, Attestation
from esper.api.urza.v1 import library_pb2 as pb
from esper.errors import Corrupt, EsperError, NotFound
from esper.urza import codec
from esper.urza.blobs import Blobs, closing
from esper.urza.ledger import Entry, Head, verify
from esper.urza.port import ArtifactVerifier
from esper.urza.reader import Reader
from esper.urza.statuses import BLUEPRINT, KERNEL
from esper.urza.writer import blueprint_row, kernel_row

MAX_PROBLEMS = 1000
_BATCH = 500


@dataclass
class Told:
    """What the ledger says of one resource: the entry that made it, and its latest change."""

    made: Entry
    latest: Entry

    def detail(self) -> dict[str, Any]:
        return dict(json.loads(self.made.detail_json))

    def status(self) -> dict[str, Any]:
        """Of its latest move; empty if it stands where it was made."""
        return {} if self.latest is self.made else dict(json.loads(self.latest.detail_json))


@dataclass
class Verification:
    """Findings so far."""

    problems: list[str] = field(default_factory=list)
    entries: int = 0
    rows: int = 0
    blobs: int = 0
    told: dict[str, Told] = field(default_factory=dict)
    blueprints: dict[str, pb.Blueprint] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # of each blob, one kernel that has it

    def wrong(self, what: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(what)

    def of(self, name: str) -> Told:
        """What the ledger says of a row. Raises Corrupt where it says nothing."""
        if name not in self.told:
            raise Corrupt("a row that the ledger does not know")
        return self.told[name]

    @contextmanager
    def judging(self, name: str) -> Iterator[None]:
        """Count a row; what is raised while it is compared is what is wrong with it."""
        self.rows += 1
        try:
            yield
        except EsperError as error:
            self.wrong(f"{name}: {error}")
        except (DecodeError, ValueError, TypeError, KeyError) as error:
            self.wrong(f"{name}: its row, its blueprint or its ledger entry cannot be read ({error})")


async def verify_rows(reader: Reader, verifier: ArtifactVerifier) -> Verification:
    """Everything in the database, of one state of it."""
    seen = Verification()
    await _ledger(reader, seen)
    found: set[str] = set()
    for check in (_blueprints, _kernels, _reports, _aliases):
        found |= await check(reader, verifier, seen)
    for name in sorted(seen.told.keys() - found):
        seen.wrong(f"{name}: the ledger has it from revision {seen.told[name].made.revision}, its row is missing")
    return seen


async def verify_blobs(blobs: Blobs, seen: Verification) -> None:
    """Read every blob that a kernel has. One that changed goes to quarantine, as at any reading."""
    for digest, artifact_id in seen.digests.items():
        seen.blobs += 1
        try:
            async with closing(blobs.read(digest)) as pieces:
                async for _ in pieces:
                    pass
        except (Corrupt, NotFound) as error:
            seen.wrong(f"kernels/{artifact_id}: {error}")


async def _ledger(reader: Reader, seen: Verification) -> None:
    head, end = Head(), await reader.head()
    while entries := await reader.entries(head.revision, _BATCH):
        for entry in entries:
            try:
                verify([entry], head)
            except Corrupt as error:
                seen.wrong(str(error))
            head = Head(entry.revision, entry.digest)
            told = seen.told.setdefault(entry.resource_name, Told(entry, entry))
            told.latest = entry
        seen.entries += len(entries)
    if head != end:
        seen.wrong(f"ledger: it ends at revision {head.revision}, the store is at {end.revision}")


async def _blueprints(reader: Reader, _verifier: ArtifactVerifier, seen: Verification) -> set[str]:
    found, edges = set(), await reader.edges()
    async for row in reader.rows("blueprints"):
        name = f"blueprints/{row['blueprint_id']}"
        found.add(name)
        with seen.judging(name):
            blueprint = pb.Blueprint.FromString(row["record"])
            seen.blueprints[row["blueprint_id"]] = blueprint
            _compare_blueprint(name, seen, row, blueprint)
            parents = await reader.revisions(blueprint.parent_ids)
            if edges.get(row["revision"], set()) != set(parents.values()):
                seen.wrong(f"{name}: its rows of the lineage are not its parents")
    return found


def _compare_blueprint(name: str, seen: Verification, row: dict[str, Any], blueprint: pb.Blueprint) -> None:
    told = seen.of(name)
    detail, status = told.detail(), told.status()
    if codec.graph_digest(blueprint.graph) != detail.pop("graph_sha256"):
        seen.wrong(f"{name}: its graph is not the one it was created with")
    wanted = pb.Blueprint(blueprint_id=row["blueprint_id"], graph=blueprint.graph, **detail)
    wanted.create_time.CopyFrom(codec.write_time(told.made.time_ns))
    wanted.status = pb.BlueprintStatus.Value(BLUEPRINT.prefix + status.get("to", "UNVALIDATED"))
    wanted.status_reason = status.get("reason", "")
    _compare(name, seen, (wanted, blueprint), (blueprint_row(wanted, told.made.revision), row))


async def _kernels(reader: Reader, verifier: ArtifactVerifier, seen: Verification) -> set[str]:
    found = set()
    async for row in reader.rows("kernels"):
        name = f"kernels/{row['artifact_id']}"
        found.add(name)
        with seen.judging(name):
            told, manifest = seen.of(name), ArtifactManifest.FromString(row["manifest"])
            body = _body(name, seen, row["artifact_id"], manifest, verifier)
            files = await reader.files(row["artifact_id"])
            if files != dict(body.files):
                seen.wrong(f"{name}: its rows of files are not those of its body")
            wanted = _kernel(row["artifact_id"], told, body, seen.blueprints[body.blueprint_id])
            made = kernel_row(wanted, manifest, told.made.revision) | {"changed": told.latest.revision}
            _compare(name, seen, (wanted, pb.Kernel.FromString(row["record"])), (made, row))
            if wanted.status != pb.KERNEL_STATUS_QUARANTINED:
                seen.digests.update((entry.digest, row["artifact_id"]) for entry in files.values())
    return found


def _body(
    name: str, seen: Verification, artifact_id: str, manifest: ArtifactManifest, verifier: ArtifactVerifier
) -> codec.KernelBody:
    """A manifest's body, checked. Raises what the check finds wrong."""
    if manifest.artifact_id != artifact_id:
        seen.wrong(f"{name}: its manifest is of {manifest.artifact_id}")
    verifier.check_id(manifest)
    for one in manifest.attestations:  # each alone: that another of its role verifies says nothing of it
        alone = ArtifactManifest(artifact_id=manifest.artifact_id, body=manifest.body, attestations=[one])
        verifier.check_attested(alone, one.role)
    attested = [f"{Attestation.Role.Name(one.role)} {one.key_id}" for one in manifest.attestations]
    told = seen.of(name)
    known = (
        told.status()["attested_by"] if told.status() else [f"ROLE_BUILT {key}" for key in told.detail()["built_by"]]
    )
    if attested != known:
        seen.wrong(f"{name}: its attestations are not those of its latest change")
    return verifier.read_body(manifest)


def _kernel(artifact_id: str, told: Told, body: codec.KernelBody, blueprint: pb.Blueprint) -> pb.Kernel:
    """The record that a body and the ledger give."""
    kernel, status = codec.new_kernel(artifact_id, body, blueprint, told.made.time_ns), told.status()
    if status:
        kernel.status = pb.KernelStatus.Value(KERNEL.prefix + status["to"])
        kernel.status_reason = status["reason"]
        kernel.tags.extend(status["tags"])
        for figure in ("forward_us_p50", "peak_bytes", "report_name", "interest", "risk"):
            setattr(kernel, figure, status[figure])
    return kernel


async def _reports(reader: Reader, _verifier: ArtifactVerifier, seen: Verification) -> set[str]:
    found = set()
    async for row in reader.rows("reports"):
        found.add(row["name"])
        with seen.judging(row["name"]):
            told = seen.of(row["name"])
            has = {"artifact_id": row["artifact_id"], "size_bytes": len(row["body"])}
            has["sha256"] = hashlib.sha256(row["body"]).hexdigest()
            if has != told.detail() or row["revision"] != told.made.revision:
                seen.wrong(f"{row['name']}: its row is not what was stored at revision {told.made.revision}")
    return found


async def _aliases(reader: Reader, _verifier: ArtifactVerifier, seen: Verification) -> set[str]:
    found = set()
    async for row in reader.rows("aliases"):
        name = f"aliases/{row['alias']}"
        found.add(name)
        with seen.judging(name):
            target = json.loads(seen.of(name).latest.detail_json)["to"]
            if target != row["target_name"]:
                seen.wrong(f"{name}: points at {row['target_name']}, the ledger at {target}")
    return found


def _compare(name: str, seen: Verification, records: tuple[Any, Any], rows: tuple[Any, Any]) -> None:
    """Note where a record, or a column copied from it, is not what the ledger gives; that is first of each pair."""
    wanted, kept = records
    made, row = rows
    if wanted != kept:
        fields = [one.name for one in wanted.DESCRIPTOR.fields if getattr(wanted, one.name) != getattr(kept, one.name)]
        seen.wrong(f"{name}: its record is not what the ledger says: {', '.join(fields) or 'unknown fields'}")
    elif wrong := [column for column, value in made.items() if row[column] != value]:
        seen.wrong(f"{name}: its columns are not those of its record: {', '.join(wrong)}")
