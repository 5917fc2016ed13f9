"""The JetStream streams: which there are, what they keep, how they are made.

One server with `sync_interval: always`, because that is a setting of the server. It costs
telemetry nothing measurable, since that is batched: at 10,000 events/s the 99th
percentile was 6.2 ms with it and 7.0 ms without (medians of five interleaved runs). Not
`persist_mode: async`, which acknowledges before it writes: each of three kill -9 lost 12
to 64 acknowledged messages.
"""

from dataclasses import dataclass

from nats.js import JetStreamContext, api
from nats.js.errors import NotFoundError

from esper import errors
from esper.oona.port import StreamState
from esper.oona.subjects import SUBJECTS, Durability

DEAD = "dead"
DAY_S = 86_400.0
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Retention:
    """What a stream keeps. A full one drops what is oldest, or refuses what is new."""

    max_age_s: float
    max_bytes: int
    duplicate_window_s: float
    drop_old: bool


RETENTION = {
    Durability.COMMAND: Retention(30 * DAY_S, 256 * MIB, 600.0, drop_old=False),
    Durability.TELEMETRY: Retention(1 * DAY_S, 1024 * MIB, 120.0, drop_old=True),
}
# State packets are large, and each makes the one before it history: nobody waits for an old one.
_SYSTEM = Retention(30 * DAY_S, 256 * MIB, 600.0, drop_old=True)


def stream_name(prefix: str, stream: str) -> str:
    """The stream's name at the broker."""
    return f"{prefix}_{stream}"


def dead_subject(prefix: str, group: str, name: str, run_token: str) -> str:
    """Where `group` puts what it gives up."""
    return f"{prefix}.{DEAD}.{group}.{name}.{run_token}"


def configurations(prefix: str) -> list[api.StreamConfig]:
    """All streams below `prefix`."""
    subjects: dict[str, list[str]] = {}
    classes: dict[str, Durability] = {}
    for subject in SUBJECTS.values():
        subjects.setdefault(subject.stream, []).append(f"{prefix}.{subject.name}.>")
        classes[subject.stream] = subject.durability
    subjects[DEAD], classes[DEAD] = [f"{prefix}.{DEAD}.>"], Durability.COMMAND
    keep = {stream: RETENTION[durability] for stream, durability in classes.items()} | {"system": _SYSTEM}
    return [_configuration(prefix, stream, subjects[stream], keep[stream]) for stream in subjects]


def reserved_bytes(prefix: str) -> int:
    """What the streams below `prefix` may keep together; the broker sets it aside."""
    return sum(config.max_bytes or 0 for config in configurations(prefix))


def _configuration(prefix: str, stream: str, subjects: list[str], keep: Retention) -> api.StreamConfig:
    return api.StreamConfig(
        name=stream_name(prefix, stream),
        subjects=subjects,
        storage=api.StorageType.FILE,
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.OLD if keep.drop_old else api.DiscardPolicy.NEW,
        max_age=keep.max_age_s,
        max_bytes=keep.max_bytes,
        duplicate_window=keep.duplicate_window_s,
        num_replicas=1,
        allow_direct=True,
    )


async def ensure(js: JetStreamContext, prefix: str) -> None:
    """Make the streams that are missing. One that is there keeps the limits its operator gave it.

    Raises PreconditionFailed where a stream of ours is there for other subjects.
    """
    for wanted in configurations(prefix):
        assert wanted.name is not None
        try:
            found = (await js.stream_info(wanted.name)).config
        except NotFoundError:
            await js.add_stream(wanted)
            continue
        if set(found.subjects or ()) != set(wanted.subjects or ()):
            raise errors.PreconditionFailed(
                f"stream {wanted.name} keeps {found.subjects}, {wanted.subjects} are needed; "
                "remove the stream, or choose another bus prefix"
            )


def state_of(info: api.StreamInfo, prefix: str, sync_always: bool) -> StreamState:
    """The port's view of a stream."""
    state = info.state
    name = (info.config.name or "").removeprefix(f"{prefix}_")
    filled = state.last_seq > 0
    return StreamState(
        name=name,
        messages=state.messages,
        size_bytes=state.bytes,
        first_sequence=state.first_seq if filled else 0,
        last_sequence=state.last_seq,
        # A stream made by somebody else may have opted out of its server's setting.
        sync_always=sync_always and info.config.persist_mode != api.PersistMode.ASYNC,
    )
