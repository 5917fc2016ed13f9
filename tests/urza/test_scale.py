"""Search stays an index look-up when the library is large. Ratios of one run, never times."""

import random
import statistics
import time
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import insert

from esper.api.common.v1.artifact_pb2 import ArtifactManifest
from esper.api.urza.v1 import library_pb2 as pb
from esper.urza import schema
from esper.urza.library import CentralLibrary
from esper.urza.writer import Writer, blueprint_row, kernel_row

from .fakes import interface

ROWS, BLUEPRINTS = 50_000, 500
# 4 kinds x 62 channel counts x 2 element types: about a hundred kernels for each interface.
CHANNELS = range(8, 504, 8)
KINDS, ELEMENT_TYPES = (1, 2, 3, 4), (1, 2)
TAGS = ("fast", "small", "stable", "p90", "gpu")


def some_kernel(number: int, draw: random.Random) -> pb.Kernel:
    return pb.Kernel(
        artifact_id=f"{number:064x}",
        blueprint_id=f"{number % BLUEPRINTS:064x}",
        interface=interface(draw.choice(CHANNELS), kind=draw.choice(KINDS), element_type=draw.choice(ELEMENT_TYPES)),
        target=1,
        status=pb.KERNEL_STATUS_VALIDATED,
        parameter_count=draw.randrange(1, 100_000),
        forward_us_p50=draw.uniform(1, 500),
        peak_bytes=draw.randrange(1, 10**8),
        tags=draw.sample(TAGS, 2),
    )


async def fill(tx: Writer) -> None:
    draw, manifest = random.Random(7), ArtifactManifest(body=b"{}" * 1_000)
    designs = [blueprint_row(pb.Blueprint(blueprint_id=f"{number:064x}"), number + 1) for number in range(BLUEPRINTS)]
    await tx._connection.execute(insert(schema.blueprints), designs)
    for start in range(0, ROWS, 1_000):
        numbers = range(start, start + 1_000)
        rows = [kernel_row(some_kernel(number, draw), manifest, BLUEPRINTS + number + 1) for number in numbers]
        await tx._connection.execute(insert(schema.kernels), rows)


async def times_s(call: Callable[[int], Awaitable[object]], count: int = 200) -> list[float]:
    taken = []
    for number in range(count):
        started = time.perf_counter()
        await call(number)
        taken.append(time.perf_counter() - started)
    return sorted(taken)


@pytest.mark.slow
async def test_a_search_of_fifty_thousand_costs_a_few_gets(library: CentralLibrary) -> None:
    async def get(number: int) -> object:
        return await library.get_kernel(pb.GetKernelRequest(artifact_id=f"{number * 797 % ROWS:064x}"))

    async def search(number: int) -> object:
        site = interface(CHANNELS[number % len(CHANNELS)], kind=KINDS[number % 4])
        reply = await library.search_kernels(pb.SearchKernelsRequest(interface=site, preferred_tags=["fast"]))
        assert len(reply.matches) == 20
        return reply

    await library._store.write(fill)
    gets, searches = await times_s(get), await times_s(search)
    for name, taken in (("get", gets), ("search", searches)):
        print(f"{name}: p50 {statistics.median(taken) * 1e3:.2f} ms, p99 {taken[-3] * 1e3:.2f} ms")
    assert statistics.median(searches) < 20 * statistics.median(gets)
