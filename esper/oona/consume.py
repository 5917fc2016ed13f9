"""The loop of a worker: take an item, do it, settle it; keep it from others while it is done."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from esper import errors
from esper.oona.port import Bus, Envelope, WorkItem, WorkOptions

log = logging.getLogger(__name__)

LONGEST_DELAY_S = 60.0


async def work_through(
    bus: Bus,
    name: str,
    group: str,
    do: Callable[[Envelope], Awaitable[object]],
    *,
    options: WorkOptions = WorkOptions(),  # noqa: B008  frozen
    retry_delay_s: float = 1.0,
) -> None:
    """Do the work of `group` on `name`, one item at a time, until the bus is closed.

    An item is done when `do` returns. InvalidRequest makes it a dead letter at once; any
    other exception has it done again after `retry_delay_s`, doubled each time. `do` must
    bear to be run twice for one envelope.
    """
    async for item in bus.work(name, group, options):
        try:
            async with extended(item, options.redeliver_after_s / 3):
                await do(item.envelope)
        except errors.InvalidRequest as error:
            await _settle(item, item.reject(str(error)))
        except Exception as error:
            log.warning("%s of group %s failed: %s", item.envelope.id, group, error, exc_info=error)
            delay_s = min(retry_delay_s * 2 ** (item.deliveries - 1), LONGEST_DELAY_S)
            await _settle(item, item.nack(f"{type(error).__name__}: {error}", delay_s))
        else:
            await _settle(item, item.ack())


@contextlib.asynccontextmanager
async def extended(item: WorkItem, every_s: float) -> AsyncIterator[None]:
    """Keep `item` from being given to another member while the context is open."""

    async def keep() -> None:
        while True:
            await asyncio.sleep(every_s)
            await _settle(item, item.extend())

    keeper = asyncio.create_task(keep())
    try:
        yield
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)


async def _settle(item: WorkItem, settling: Awaitable[None]) -> None:
    """A broker that cannot be told now gives the item out again: work is done at least once."""
    try:
        await settling
    except (errors.Unavailable, errors.DeadlineExceeded) as error:
        log.warning("%s will be delivered again: %s", item.envelope.id, error)
