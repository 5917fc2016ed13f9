"""The library's tables. A change here needs a new SCHEMA_VERSION.

A record is kept as its canonical protobuf bytes; the columns beside it are copies made to
be found by. `revision` of a row is the change that created it, so ordering by it is
ordering by age and no clock is asked; a kernel's `changed` is its latest change.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

SCHEMA_VERSION = 2

metadata = MetaData()
_DIGEST = String(64)

# One row: what the tables are, and the ledger's head.
meta = Table(
    "meta",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("schema_version", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("digest", _DIGEST, nullable=False),
)

blueprints = Table(
    "blueprints",
    metadata,
    Column("blueprint_id", _DIGEST, primary_key=True),
    Column("revision", BigInteger, nullable=False, unique=True),
    Column("status", Integer, nullable=False),
    Column("family", String(64), nullable=False),
    Column("record", LargeBinary, nullable=False),
    Index("blueprints_by_status", "status", "revision"),
    Index("blueprints_by_family", "family", "revision"),
)

# Blueprints by their revisions: a parent's is lower than its child's.
lineage = Table(
    "lineage",
    metadata,
    Column("child", BigInteger, primary_key=True, autoincrement=False),
    Column("parent", BigInteger, primary_key=True, autoincrement=False),
    Index("lineage_by_parent", "parent", "child"),
)

# `manifest` is last: a row's long bytes lie on pages that a search does not touch.
kernels = Table(
    "kernels",
    metadata,
    Column("artifact_id", _DIGEST, primary_key=True),
    Column("revision", BigInteger, nullable=False, unique=True),
    Column("changed", BigInteger, nullable=False),
    Column("blueprint_id", _DIGEST, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("channels", Integer, nullable=False),
    Column("element_type", Integer, nullable=False),
    Column("causal", Boolean, nullable=False),
    Column("target", Integer, nullable=False),
    Column("status", Integer, nullable=False),
    Column("parameter_count", BigInteger, nullable=False),
    Column("forward_us_p50", Float(53), nullable=False),
    Column("peak_bytes", BigInteger, nullable=False),
    Column("interest", Float(53), nullable=False),
    Column("risk", Float(53), nullable=False),
    Column("tags_json", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("manifest", LargeBinary, nullable=False),
    Index("kernels_by_interface", "kind", "channels", "element_type", "causal", "changed"),
    Index("kernels_by_blueprint", "blueprint_id", "status"),
    Index("kernels_by_status", "status", "revision"),
)

# Kept apart from the kernels: a use is no change of the library, and has no revision.
kernel_uses = Table(
    "kernel_uses",
    metadata,
    Column("artifact_id", _DIGEST, primary_key=True),
    Column("uses", BigInteger, nullable=False),
    Column("last_used_ns", BigInteger, nullable=False),
)

# In the order the body lists them; the index tells whether a blob is anybody's.
kernel_files = Table(
    "kernel_files",
    metadata,
    Column("artifact_id", _DIGEST, primary_key=True),
    Column("file", String(256), primary_key=True),
    Column("digest", _DIGEST, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Index("kernel_files_by_digest", "digest"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("alias", String(128), primary_key=True),
    Column("target_name", String(128), nullable=False),
)

reports = Table(
    "reports",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("artifact_id", _DIGEST, nullable=False),
    Column("revision", BigInteger, nullable=False, unique=True),
    Column("body", LargeBinary, nullable=False),
    Index("reports_by_kernel", "artifact_id", "revision"),
)

requests = Table(
    "requests",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("key", _DIGEST, nullable=False),
    Column("reply", LargeBinary, nullable=False),
    Column("time_ns", BigInteger, nullable=False),
    Index("requests_by_time", "time_ns"),
)

ledger = Table(
    "ledger",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("time_ns", BigInteger, nullable=False),
    Column("action", String(64), nullable=False),
    Column("resource_name", String(256), nullable=False),
    Column("detail_json", Text, nullable=False),
    Column("digest", _DIGEST, nullable=False),
    Index("ledger_by_resource", "resource_name", "revision"),
)

outbox = Table(
    "outbox",
    metadata,
    Column("sequence", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("event_id", String(256), nullable=False, unique=True),
    Column("payload_type", String(256), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("time_ns", BigInteger, nullable=False),
    Column("published", Boolean, nullable=False),
    Index("outbox_by_published", "published", "sequence"),
)
