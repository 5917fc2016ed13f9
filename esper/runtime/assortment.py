"""Which blueprints an interface gets kernels of: the library's best, some made for it, and what people put in."""

import enum
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from esper.api.common.v1 import interface_pb2
from esper.api.tolaria.v1 import state_pb2
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_interface, write_graph
from esper.blueprint.interface import Interface
from esper.karn.generate import Generated, generate, parents_of_the_library
from esper.karn.opportunity import WIDE_PARAMETERS, Found, Opportunity, SiteDescription, opportunities
from esper.karn.propose import MAX_LIMIT, propose
from esper.karn.templates import TEMPLATES, Template

LIBRARY, KARN = "library", "karn"  # authors


@dataclass(frozen=True, slots=True)
class Assortment:
    """How many designs an interface gets kernels of, so that a run's first minutes are not spent compiling."""

    library: int = 6  # the first of Karn's order
    generated: int = 2  # made by Karn for this interface


ASSORTMENT = Assortment()


@dataclass(frozen=True, slots=True)
class Need:
    """What a run of a seed needs kernels for: an interface, and what its sites there could be grown for."""

    interface: Interface
    kinds: tuple[Opportunity, ...]  # one or more, each once, in the order of the enumeration
    seed: int
    limits: Assortment = ASSORTMENT


class Sort(enum.Enum):
    """Whom a blueprint is for."""

    LIBRARY = enum.auto()  # a template: for any run, the best of them
    GENERATED = enum.auto()  # Karn's, for one interface and run seed
    PEOPLES = enum.auto()  # somebody put it in: for any run


class Shelf(Protocol):
    """What of the library is used here; see esper.urza.port."""

    async def create_blueprint(self, request: pb.CreateBlueprintRequest, /) -> pb.CreateBlueprintResponse: ...


def needs_of(sites: Iterable[state_pb2.SiteState], seed: int, limits: Assortment = ASSORTMENT) -> list[Need]:
    """One for each interface of a run's sites, in their order.

    By the class of each site alone: a run's needs are the same from its first word to its last, while a site's
    parameters grow with what is kept there, and readings change. Raises InvalidRequest for an interface that is none.
    """
    alike = dict.fromkeys((site.interface.SerializeToString(deterministic=True), site.layer_kind) for site in sites)
    interfaces = {at: read_interface(interface_pb2.Interface.FromString(at)) for at, _ in alike}
    kinds: dict[bytes, set[Opportunity]] = {at: set() for at in interfaces}
    for at, layer_kind in alike:
        site = SiteDescription("", layer_kind, interfaces[at], WIDE_PARAMETERS)
        kinds[at] |= {found.kind for found in opportunities([site])}
    return [
        Need(interfaces[at], tuple(one for one in Opportunity if one in wanted), seed, limits)
        for at, wanted in kinds.items()
    ]


def sort_of(blueprint: pb.Blueprint) -> Sort:
    if blueprint.author == LIBRARY:
        return Sort.LIBRARY
    if blueprint.author == KARN and blueprint.title.startswith("karn_"):
        return Sort.GENERATED
    return Sort.PEOPLES


def chosen(blueprints: Iterable[pb.Blueprint], need: Need) -> list[pb.Blueprint]:
    """Those of `blueprints`, which fit the interface, that a run makes kernels of, whatever others put beside them."""
    wanted = {Sort.LIBRARY: best(need.interface, need.limits), Sort.GENERATED: own(need)}
    return [one for one in blueprints if sort_of(one) is Sort.PEOPLES or one.blueprint_id in wanted[sort_of(one)]]


@functools.lru_cache(maxsize=256)
def best(interface: Interface, limits: Assortment) -> frozenset[str]:
    """Blueprint ids of the library's designs that a run has."""
    return frozenset(design.blueprint_id for design in propose(interface, limit=MAX_LIMIT)[: limits.library])


def own(need: Need) -> frozenset[str]:
    """Blueprint ids of the designs that Karn makes for it."""
    return frozenset(design.blueprint_id for design in designs(need))


@functools.lru_cache(maxsize=256)
def designs(need: Need) -> tuple[Generated, ...]:
    """The same for the same need: one for each kind in turns, which comes first being drawn from the seed."""
    most = max((d.inference.parameter_count for d in propose(need.interface) if d.inference is not None), default=0)
    rng, known, made = Random(f"{need.seed} {need.interface}"), set[str](), list[Generated]()
    kinds = rng.sample(need.kinds, len(need.kinds))
    for i in range(need.limits.generated):
        found = Found("", need.interface, kinds[i % len(kinds)], "offered beside the library's", most)
        fresh = generate(found, rng, parents_of_the_library(), 1, exclude=known)[0]
        known.update(design.blueprint_id for design in fresh)
        made += fresh
    return tuple(made)


async def offer_generated(library: Shelf, need: Need) -> None:
    """Put Karn's designs for it into the library, after their parents; what is there stays.

    Another run may have come to the same design by other moves, so the requests have no id: they are not the same.
    """
    by_id = {blueprint_id(template.graph): template for template in TEMPLATES.values()}
    for design in designs(need):
        for parent in design.parents:
            await library.create_blueprint(template_request(by_id[parent]))
        request = pb.CreateBlueprintRequest(
            graph=write_graph(design.graph),
            title=design.title[:128],
            family=design.family,
            author=KARN,
            parent_ids=design.parents,
            source=(f"made for {need.interface}; " + "; ".join(design.moves))[:512],
        )
        await library.create_blueprint(request)


def template_request(template: Template) -> pb.CreateBlueprintRequest:
    return pb.CreateBlueprintRequest(
        request_id=f"template-{blueprint_id(template.graph)}",
        graph=write_graph(template.graph),
        title=template.title,
        family=template.family,
        author=LIBRARY,
        source=template.source,
    )
