"""How long a search of a large library takes, in this process and over SQLite on disk.

The library has 100,000 blueprints with their lineage and 200,000 kernels: half of them over 500
interfaces, half at one, which is the worst that a search can meet, as it looks at every kernel of its
interface. `p50_ms` and `p99_ms`: of searches one after another, each with a fresh draw of what is
asked. `first_ms`: the first search at the crowded interface after a start, which reads its kernels
from the database; later ones read what changed.

What the controller asks at a decision point of a run is timed apart, as it asks it: `esper.runtime.inventory`
in front of the library, one interface, and between two questions somebody else's blueprint comes and a kernel
for the interface is judged again. Its `first_ms` is the question that reads all blueprints.
"""

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.flow.big_library import CROWDED, TAGS, blueprint_id, fill, go_on, spread
from bench.registry import Options
from bench.row import Row, Target, make_row
from esper.api.common.v1 import resource_pb2
from esper.api.tolaria.v1.state_pb2 import SiteState
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.keys import TrustRoots
from esper.runtime.inventory import Inventory
from esper.urza.library import CentralLibrary
from esper.urza.service import open_library

NAME = "library"
P99_MS, DECISION_MS = Target(20.0), Target(10.0)
COUNT, QUICK_COUNT = 100_000, 1_000
SEARCHES, QUICK_SEARCHES = 300, 30
Draw = Callable[[random.Random], pb.SearchKernelsRequest]


def rows(options: Options) -> Iterator[Row]:
    count = QUICK_COUNT if options.quick else COUNT
    searches = QUICK_SEARCHES if options.quick else SEARCHES
    with tempfile.TemporaryDirectory(prefix="esper-bench-") as folder, asyncio.Runner() as runner:
        library = runner.run(opened(Path(folder)))
        try:
            runner.run(fill(library._store, count))
            for case, draw in cases(count).items():
                taken = runner.run(times_ms(library, draw, searches))
                yield make_row(NAME, case, "p50_ms", taken[len(taken) // 2], "ms")
                yield make_row(NAME, case, "p99_ms", taken[int(len(taken) * 0.99)], "ms", target=P99_MS)
            yield from runner.run(questions(library, count, searches))
            runner.run(library.close())
            library = runner.run(opened(Path(folder)))
            (first,) = runner.run(times_ms(library, lambda _: pb.SearchKernelsRequest(interface=CROWDED), 1))
            yield make_row(NAME, f"{count} at one interface", "first_ms", first, "ms")
        finally:
            runner.run(library.close())


async def opened(folder: Path) -> CentralLibrary:
    return await open_library(f"sqlite+aiosqlite:///{folder}/library.db", f"file://{folder}/blobs", TrustRoots())


def cases(count: int) -> Mapping[str, Draw]:
    """What is asked of a search, from little to the most that one can ask."""

    def tags(draw: random.Random, number: int) -> list[str]:
        return draw.sample(TAGS, number)

    def typical(draw: random.Random) -> pb.SearchKernelsRequest:
        return pb.SearchKernelsRequest(interface=spread(draw.randrange(count), count), preferred_tags=tags(draw, 2))

    def crowded(draw: random.Random, **fields: object) -> pb.SearchKernelsRequest:
        return pb.SearchKernelsRequest(interface=CROWDED, preferred_tags=tags(draw, 2), **fields)  # type: ignore[arg-type]

    def everything(draw: random.Random) -> pb.SearchKernelsRequest:
        required, excluded = tags(draw, 2)
        return crowded(
            draw,
            target=resource_pb2.TARGET_CPU,
            required_tags=[required],
            excluded_tags=[excluded],
            max_parameters=draw.randrange(10**5, 10**6),
            max_forward_us=500.0,
            max_peak_bytes=10**8,
            max_risk=0.9,
            min_interest=0.1,
            interest_weight=0.5,
        )

    def family(draw: random.Random) -> pb.SearchKernelsRequest:
        return crowded(draw, descends_from_blueprint_id=blueprint_id(draw.randrange(count - count // 100, count)))

    def largest_family(draw: random.Random) -> pb.SearchKernelsRequest:
        return crowded(draw, descends_from_blueprint_id=blueprint_id(0))

    return {
        "200 at an interface": typical,
        f"{count} at one interface": crowded,
        f"{count} at one, every tag rule and limit": everything,
        f"{count} at one, best 1000": lambda draw: crowded(draw, limit=1000),
        f"{count} at one, small family": family,
        f"{count} at one, descendants of the first": largest_family,
    }


async def times_ms(library: CentralLibrary, draw: Draw, searches: int) -> list[float]:
    """Of each search, shortest first; all are different, and each finds something."""
    chance, taken = random.Random(3), []
    for _ in range(searches):
        request = draw(chance)
        began = time.perf_counter()
        reply = await library.search_kernels(request)
        taken.append((time.perf_counter() - began) * 1e3)
        assert reply.matches, request
    return sorted(taken)


async def questions(library: CentralLibrary, count: int, asked: int) -> list[Row]:
    """Rows of what a controller asks, of a run at an interface with few kernels and of one at the crowded."""
    made, number = list[Row](), count
    for case, interface in (("200 at its interface", spread(0, count)), (f"{count} at its interface", CROWDED)):
        inventory, taken = Inventory(library), []
        sites = [SiteState(layer_kind="Linear", interface=interface)]
        for _ in range(asked + 1):
            began = time.perf_counter()
            found = await inventory.of_sites(sites, seed=1)
            taken.append((time.perf_counter() - began) * 1e3)
            assert all(one.ready for one in found.values()), interface
            await go_on(library._store, number, interface)
            number += 1
        first, later, case = taken[0], sorted(taken[1:]), f"controller's question, {case}"
        made.append(make_row(NAME, case, "p50_ms", later[len(later) // 2], "ms"))
        made.append(make_row(NAME, case, "p99_ms", later[int(len(later) * 0.99)], "ms", target=DECISION_MS))
        made.append(make_row(NAME, case, "first_ms", first, "ms"))
    return made


def test_library(benchmark, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with asyncio.Runner() as runner:
        library = runner.run(opened(tmp_path))
        runner.run(fill(library._store, QUICK_COUNT))
        reply = benchmark(lambda: runner.run(library.search_kernels(pb.SearchKernelsRequest(interface=CROWDED))))
        assert reply.matches
        runner.run(library.close())
