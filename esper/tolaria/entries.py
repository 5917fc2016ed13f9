"""Journal entries <-> what arrives on the line."""

from collections.abc import Callable

from esper.api.common.v1 import artifact_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.kasmina.codec import read_seed_id, write_seed_id
from esper.kasmina.lifecycle import SeedId
from esper.tolaria.line import Incoming, Loaded


def write_entry(item: Incoming, step: int, phase: int, run_id: str) -> trainer_pb2.JournalEntry:
    """The journal's form of one arrival. Of a kernel it holds the id: its bytes are in the library."""
    entry = trainer_pb2.JournalEntry(step=step, phase=phase)
    if isinstance(item, Loaded):
        entry.loaded.seed.CopyFrom(write_seed_id(item.seed, run_id))
        entry.loaded.artifact.CopyFrom(artifact_pb2.ArtifactManifest(artifact_id=item.artifact_id))
        if item.failure:
            entry.loaded.failure.code, entry.loaded.failure.message = 13, item.failure
    elif isinstance(item, nursery_pb2.JobResult):
        entry.result.CopyFrom(item)
    elif isinstance(item, trainer_pb2.DecisionReply):
        entry.decision.CopyFrom(item)
    else:
        entry.command.CopyFrom(item)
    return entry


def read_entry(entry: trainer_pb2.JournalEntry, load: Callable[[SeedId, str], Loaded]) -> Incoming:
    """An arrival as it was; a kernel is loaded again with `load`, which waits."""
    kind = entry.WhichOneof("event")
    if kind == "command":
        return entry.command
    if kind == "result":
        return entry.result
    if kind == "decision":
        return entry.decision
    seed, artifact_id = read_seed_id(entry.loaded.seed), entry.loaded.artifact.artifact_id
    if entry.loaded.HasField("failure"):
        return Loaded(seed, artifact_id, None, entry.loaded.failure.message)
    return load(seed, artifact_id)
