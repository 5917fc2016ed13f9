"""`esper library`: what the central library of a running runtime keeps, how a person changes it, and its upkeep."""

import argparse
import re
from typing import Any

from esper.cli.control import Do, call
from esper.errors import Corrupt, InvalidRequest

_ID = re.compile(r"[0-9a-f]{6,64}")
_WHOLE_ID = re.compile(r"[0-9a-f]{64}")
_PAGE = 1000
_MOST = 2**63 - 1  # that the library's tables hold
_MOST_CHANNELS, _MOST_DEPTH, _MOST_IDLE_DAYS = 1_048_576, 1_000_000, 36_500
# A whole library is read.
_UPKEEP_S = 3600.0
KINDS, DTYPES = ("vector", "tokens", "map1d", "map2d"), ("float32", "bfloat16", "float16", "float64")
TARGETS = ("cpu", "sm_80", "sm_90", "sm_100", "gfx942")
STATUSES = ("pending_benchmarking", "validated", "rejected", "superseded", "archived", "quarantined")
BLUEPRINT_STATUSES = ("unvalidated", "compiling", "validated", "invalid", "archived")


def add(commands: Any) -> None:
    library = commands.add_parser("library", help="list, search and look after blueprints and kernels")
    verbs = library.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = _verb(verbs, "list", "list blueprints, newest first; with --status kernels", list_all)
    listing.add_argument("--status", choices=STATUSES, help="kernels of this status, e.g. quarantined")
    listing.add_argument("--family", default="", help="only blueprints of this family")
    listing.add_argument("--limit", type=int, default=100, help="most lines, at most 1000 (default 100)")
    _search(_verb(verbs, "search", "find kernels for an interface, best first, each with its reason", search))
    _named(_verb(verbs, "show", "show a blueprint with its kernels, or a kernel", show))
    lineage = _verb(verbs, "lineage", "what a blueprint was derived from", lineage_of)
    _named(lineage)
    lineage.add_argument("--descendants", action="store_true", help="what was derived from it instead")
    lineage.add_argument("--depth", type=int, default=0, help="most generations; all if absent")
    lineage.add_argument("--common", metavar="NAME", default="", help="only what is an ancestor of this one too")
    _verb(verbs, "aliases", "list aliases", list_aliases)
    _changes(verbs)
    verify = _verb(
        verbs, "verify", "check the ledger's chain, every row and every blob; status 1 if one is wrong", check
    )
    verify.add_argument("--no-blobs", action="store_true", help="leave the blobs' bytes unread")
    _curation(_verb(verbs, "curate", "say which kernels a policy archives; --apply archives them", curate))


def _verb(verbs: Any, name: str, words: str, do: Do) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=words)
    parser.add_argument("--home", default=".esper", help="folder of the runtime (default .esper)")
    parser.set_defaults(do=call(do))
    return parser


def _named(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="an alias, or the first six digits or more of an id")


def _search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("channels", type=int)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--status", choices=STATUSES, default="validated")
    for name, words in (("require", "must have"), ("prefer", "ranks higher with"), ("exclude", "must not have")):
        parser.add_argument(f"--{name}", metavar="TAG", action="append", default=[], help=f"{words} this tag")
    parser.add_argument("--max-parameters", type=int, default=0)
    parser.add_argument("--max-us", type=float, default=0.0, help="highest median forward time, microseconds")
    parser.add_argument("--max-bytes", type=int, default=0, help="most peak bytes")
    parser.add_argument("--max-risk", type=float, default=0.0, help="0 to 1")
    parser.add_argument("--min-interest", type=float, default=0.0, help="0 to 1")
    parser.add_argument("--interest", type=float, default=0.0, metavar="WEIGHT", help="what full interest adds, 0 to 1")
    parser.add_argument("--descends-from", metavar="NAME", default="", help="only of this blueprint's line")
    parser.add_argument("--ancestor-of", metavar="NAME", default="", help="only of what this blueprint came from")
    parser.add_argument("--limit", type=int, default=20, help="most results, at most 1000 (default 20)")


def _changes(verbs: Any) -> None:
    move = _verb(verbs, "move", "move a blueprint or a kernel to another status", move_to)
    _named(move)
    statuses = tuple(dict.fromkeys(STATUSES + BLUEPRINT_STATUSES))
    move.add_argument("status", type=str.lower, choices=statuses, help="where to, e.g. PENDING_BENCHMARKING")
    move.add_argument("--reason", required=True, help="why, in one line; the ledger keeps it")
    alias = _verb(verbs, "alias", "point an alias at a blueprint or a kernel; one that is there is moved", set_alias)
    alias.add_argument("alias", help="lower-case letters, digits, / _ . and -, e.g. best/conv")
    alias.add_argument("name", help="what it points at: an alias, or the first six digits or more of an id")


def _curation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--apply", action="store_true", help="archive them")
    parser.add_argument("--idle-days", type=int, default=0, help="days without a use that count as unused (30)")
    parser.add_argument("--workhorse-uses", type=int, default=0, help="uses that protect a kernel (100)")
    parser.add_argument("--protect", metavar="NAME", action="append", default=[], help="a kernel never to archive")
    parser.add_argument("--max-total-bytes", type=int, default=0, help="most bytes of what is not archived; no limit")


async def list_all(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.common.v1.resource_pb2 import PageRequest
    from esper.api.urza.v1 import library_pb2 as pb
    from esper.runtime import library_text as text

    if not 1 <= options.limit <= _PAGE:
        raise InvalidRequest(f"--limit must be 1 to {_PAGE}, got {options.limit}")
    page = PageRequest(size=options.limit)
    if options.status:
        status = pb.KernelStatus.Value(f"KERNEL_STATUS_{options.status.upper()}")
        reply = await _stub(channel).ListKernels(pb.ListKernelsRequest(page=page, status=status))
        return text.kernels(reply.kernels)
    request = pb.ListBlueprintsRequest(page=page, family=options.family)
    return text.blueprints((await _stub(channel).ListBlueprints(request)).blueprints)


async def search(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.common.v1 import interface_pb2, resource_pb2
    from esper.api.urza.v1 import library_pb2 as pb
    from esper.runtime import library_text as text

    site = interface_pb2.Interface(
        kind=interface_pb2.TensorKind.Value(f"TENSOR_KIND_{options.kind.upper()}"),
        channels=_natural("channels", options.channels, _MOST_CHANNELS),
        element_type=interface_pb2.ElementType.Value(f"ELEMENT_TYPE_{options.dtype.upper()}"),
        causal=options.causal,
    )
    request = pb.SearchKernelsRequest(
        interface=site,
        target=resource_pb2.Target.Value(f"TARGET_{(options.target or 'unspecified').upper()}"),
        status=pb.KernelStatus.Value(f"KERNEL_STATUS_{options.status.upper()}"),
        required_tags=options.require,
        preferred_tags=options.prefer,
        excluded_tags=options.exclude,
        max_parameters=_natural("--max-parameters", options.max_parameters),
        max_forward_us=options.max_us,
        max_peak_bytes=_natural("--max-bytes", options.max_bytes),
        max_risk=options.max_risk,
        min_interest=options.min_interest,
        interest_weight=options.interest,
        descends_from_blueprint_id=await blueprint_named(options.descends_from, channel),
        ancestor_of_blueprint_id=await blueprint_named(options.ancestor_of, channel),
        limit=_natural("--limit", options.limit, _PAGE),
    )
    return text.matches(await _stub(channel).SearchKernels(request))


async def show(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.urza.v1 import library_pb2 as pb
    from esper.runtime import library_text as text

    collection, _, number = (await _resolve(options.name, channel)).partition("/")
    if collection == "kernels":
        return text.kernel((await _stub(channel).GetKernel(pb.GetKernelRequest(artifact_id=number))).kernel)
    found = await _stub(channel).GetBlueprint(pb.GetBlueprintRequest(blueprint_id=number))
    kernels = await _stub(channel).ListKernels(pb.ListKernelsRequest(blueprint_id=number))
    return text.blueprint(found.blueprint, kernels.kernels)


async def lineage_of(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.common.v1.resource_pb2 import PageRequest
    from esper.api.urza.v1 import library_pb2 as pb
    from esper.runtime import library_text as text

    way = pb.LINEAGE_DIRECTION_DESCENDANTS if options.descendants else pb.LINEAGE_DIRECTION_ANCESTORS
    request = pb.GetLineageRequest(
        page=PageRequest(size=_PAGE),
        blueprint_id=await blueprint_named(options.name, channel),
        direction=way,
        max_depth=_natural("--depth", options.depth, _MOST_DEPTH),
        common_with_blueprint_id=await blueprint_named(options.common, channel),
    )
    reply = await _stub(channel).GetLineage(request)
    more = f"\nthe first {_PAGE}; there are more, ask with --depth" if reply.page.next_token else ""
    return text.lineage(reply.entries) + more


async def list_aliases(_options: argparse.Namespace, channel: Any) -> str:
    from esper.api.common.v1.resource_pb2 import PageRequest
    from esper.api.urza.v1 import library_pb2 as pb
    from esper.runtime import library_text as text

    request, found = pb.ListAliasesRequest(page=PageRequest(size=_PAGE)), []
    while True:
        reply = await _stub(channel).ListAliases(request)
        found += reply.aliases
        if not reply.page.next_token:
            return text.aliases(found)
        request.page.token = reply.page.next_token


async def move_to(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.urza.v1 import library_pb2 as pb

    collection, _, number = (await _resolve(options.name, channel)).partition("/")
    of_kernel = collection == "kernels"
    allowed = STATUSES if of_kernel else BLUEPRINT_STATUSES
    word = options.status.upper()
    if options.status not in allowed:
        raise InvalidRequest(f"{collection}/{number} cannot be {word}; statuses are {', '.join(allowed).upper()}")
    if of_kernel:
        kernel_status = pb.KernelStatus.Value(f"KERNEL_STATUS_{word}")
        await _stub(channel).SetKernelStatus(
            pb.SetKernelStatusRequest(artifact_id=number, status=kernel_status, reason=options.reason)
        )
    else:
        status = pb.BlueprintStatus.Value(f"BLUEPRINT_STATUS_{word}")
        await _stub(channel).SetBlueprintStatus(
            pb.SetBlueprintStatusRequest(blueprint_id=number, status=status, reason=options.reason)
        )
    return f"{collection}/{number} is {word} now"


async def set_alias(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.urza.v1 import library_pb2 as pb

    target = await _resolve(options.name, channel)
    reply = await _stub(channel).SetAlias(pb.SetAliasRequest(alias=options.alias, target_name=target))
    before = reply.previous_target_name
    return f"{options.alias} points at {target}" + (f"; before, at {before}" if before not in ("", target) else "")


async def check(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.urza.v1 import library_pb2 as pb
    from esper.runtime import library_text as text

    request = pb.VerifyLibraryRequest(skip_blobs=options.no_blobs)
    reply = await _stub(channel).VerifyLibrary(request, timeout=_UPKEEP_S)
    if reply.problems:
        raise Corrupt("\n".join([f"the library is not what its ledger says ({len(reply.problems)}):", *reply.problems]))
    return text.verified(reply)


async def curate(options: argparse.Namespace, channel: Any) -> str:
    from esper.api.urza.v1 import library_pb2 as pb
    from esper.runtime import library_text as text

    protected = [(await _resolve(name, channel)).removeprefix("kernels/") for name in options.protect]
    if wrong := [name for name in protected if "/" in name]:
        raise InvalidRequest(f"--protect takes kernels, got {', '.join(wrong)}")
    policy = pb.CurationPolicy(
        idle_days=_natural("--idle-days", options.idle_days, _MOST_IDLE_DAYS),
        workhorse_uses=_natural("--workhorse-uses", options.workhorse_uses),
        protected_artifact_ids=protected,
        max_total_bytes=_natural("--max-total-bytes", options.max_total_bytes),
    )
    request = pb.CurateLibraryRequest(policy=policy, dry_run=not options.apply)
    reply = await _stub(channel).CurateLibrary(request, timeout=_UPKEEP_S)
    return text.curated(reply, dry_run=not options.apply)


async def _resolve(name: str, channel: Any) -> str:
    """The resource name for an alias, a resource name, an id or the first digits of one.

    Raises NotFound, and Conflict for digits that begin several ids.
    """
    from esper.api.common.v1.resource_pb2 import PageRequest
    from esper.api.urza.v1 import library_pb2 as pb
    from esper.errors import NotFound
    from esper.runtime.library_text import only

    try:
        return str((await _stub(channel).GetAlias(pb.GetAliasRequest(alias=name))).target_name)
    except NotFound as error:
        if not _ID.fullmatch(name.rpartition("/")[2]):
            raise NotFound(
                f"{error}. A name here is an alias, or the first six digits or more of an id; what has the title "
                f"{name} is listed by `esper library list` and shown by `esper blueprint show {name}`"
            ) from error
    found: list[str] = []
    for shelf in (pb.BLUEPRINT_STATUS_UNSPECIFIED, pb.BLUEPRINT_STATUS_ARCHIVED):
        blueprints = pb.ListBlueprintsRequest(page=PageRequest(size=_PAGE), status=shelf)
        found += [f"blueprints/{one.blueprint_id}" for one in await _all(channel, "blueprints", blueprints)]
    for status in (pb.KERNEL_STATUS_UNSPECIFIED, pb.KERNEL_STATUS_ARCHIVED):
        kernels = pb.ListKernelsRequest(page=PageRequest(size=_PAGE), status=status)
        found += [f"kernels/{one.artifact_id}" for one in await _all(channel, "kernels", kernels)]
    return only(name, (one for one in found if one.startswith(name) or one.partition("/")[2].startswith(name)))


async def _all(channel: Any, what: str, request: Any) -> list[Any]:
    """Every page of a list."""
    call_page = getattr(_stub(channel), f"List{what.capitalize()}")
    found: list[Any] = []
    while True:
        reply = await call_page(request)
        found += getattr(reply, what)
        if not reply.page.next_token:
            return found
        request.page.token = reply.page.next_token


async def blueprint_named(name: str, channel: Any) -> str:
    """Id of a blueprint; empty for an empty name."""
    if not name:
        return ""
    collection, _, number = (await _resolve(name, channel)).partition("/")
    if collection != "blueprints":
        raise InvalidRequest(
            f"{name} is a kernel; a lineage is one of blueprints, and `esper library show` names its own"
        )
    return number


async def kernel_named(name: str, channel: Any) -> str:
    """Artifact id of a kernel; a whole id is taken as it is, and the library is not asked."""
    if _WHOLE_ID.fullmatch(name):
        return name
    collection, _, number = (await _resolve(name, channel)).partition("/")
    if collection != "kernels":
        raise InvalidRequest(
            f"{name} is a blueprint, and a kernel is wanted: `esper library show {name}` lists its kernels"
        )
    return number


def _natural(name: str, value: int, most: int = _MOST) -> int:
    if not 0 <= value <= most:
        raise InvalidRequest(f"{name} must be 0 to {most}, got {value}")
    return value


def _stub(channel: Any) -> Any:
    from esper.api.urza.v1 import library_pb2_grpc

    stub: Any = library_pb2_grpc.LibraryServiceStub(channel)
    return stub
