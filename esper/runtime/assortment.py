"""Which blueprints an interface gets kernels of: the library's best, some made for it, and what people put in."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import write_graph
from esper.blueprint.interface import Interface
from esper.karn.generate import Generated, generate, parents_of_the_library
from esper.karn.opportunity import Found, Opportunity
from esper.karn.propose import MAX_LIMIT, propose
from esper.karn.templates import TEMPLATES, Template

LIBRARY, KARN = "library", "karn"  # authors


@dataclass(frozen=True, slots=True)
class Assortment:
    """How many designs an interface gets kernels of, so that a run's first minutes are not spent compiling."""

    library: int = 6  # the first of Karn's order
    generated: int = 2  # made by Karn for this interface


class Shelf(Protocol):
    """What of the library is used here; see esper.urza.port."""

    async def create_blueprint(self, request: pb.CreateBlueprintRequest, /) -> pb.CreateBlueprintResponse: ...


def chosen(
    blueprints: Iterable[pb.Blueprint], interface: Interface, seed: int, limits: Assortment
) -> list[pb.Blueprint]:
    """Those of `blueprints` that a run makes kernels of, whatever other runs have put beside them."""
    best = {design.blueprint_id for design in propose(interface, limit=MAX_LIMIT)[: limits.library]}
    return [
        one
        for one in blueprints
        if (one.author != LIBRARY or one.blueprint_id in best) and not of_another_run(one, interface, seed, limits)
    ]


def of_another_run(blueprint: pb.Blueprint, interface: Interface, seed: int, limits: Assortment) -> bool:
    """Whether Karn made it for an interface or a run seed that are not these."""
    if blueprint.author != KARN or not blueprint.title.startswith("karn_"):
        return False
    return blueprint.blueprint_id not in {design.blueprint_id for design in designs(interface, seed, limits)}


@functools.lru_cache(maxsize=256)
def designs(interface: Interface, seed: int, limits: Assortment) -> tuple[Generated, ...]:
    """The same for the same seed: one each for capacity and for what the interface allows, in turns."""
    second = Opportunity.ATTENTION if interface.kind.position_dims else Opportunity.ACTIVATION
    most = max((d.inference.parameter_count for d in propose(interface) if d.inference is not None), default=0)
    rng, known, made = Random(f"{seed} {interface}"), set[str](), list[Generated]()
    for i in range(limits.generated):
        kind = (Opportunity.CAPACITY, second)[i % 2]
        found = Found("", interface, kind, "offered beside the library's", most)
        fresh = generate(found, rng, parents_of_the_library(), 1, exclude=known)[0]
        known.update(design.blueprint_id for design in fresh)
        made += fresh
    return tuple(made)


async def offer_generated(library: Shelf, interface: Interface, seed: int, limits: Assortment) -> None:
    """Put this seed's designs for `interface` into the library, after their parents; what is there stays."""
    by_id = {blueprint_id(template.graph): template for template in TEMPLATES.values()}
    for design in designs(interface, seed, limits):
        for parent in design.parents:
            await library.create_blueprint(template_request(by_id[parent]))
        request = pb.CreateBlueprintRequest(
            request_id=f"karn-{design.blueprint_id}",
            graph=write_graph(design.graph),
            title=design.title[:128],
            family=design.family,
            author=KARN,
            parent_ids=design.parents,
            source=(f"made for {interface}; " + "; ".join(design.moves))[:512],
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
