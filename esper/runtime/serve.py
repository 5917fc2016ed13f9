"""Serve: one process with all components (`esper up`), or with one (`esper serve`)."""

import asyncio
import contextlib
import functools
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from esper.errors import InvalidConfig
from esper.nissa.metrics import Metrics
from esper.oona.broker import Broker, BrokerOptions
from esper.oona.connection import Address
from esper.oona.jetstream import JetStreamBus
from esper.rpc.server import Server
from esper.runtime.cores import usual_workers
from esper.runtime.home import KEEPERS, Contact, Home
from esper.runtime.observe import build_nissa
from esper.runtime.platform import Platform, trust_of
from esper.runtime.services import BUILDERS
from esper.runtime.targets import default_targets
from esper.runtime.use import Use
from esper.tezzeret.available import check_targets

log = logging.getLogger(__name__)

COMPONENTS = (*BUILDERS, "nissa")
BROKER_CHECK_S = 0.2
USED_CHECK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How one process serves.

    `workers`: jobs at a time of forge, evaluator and nursery. `peers`: where other components listen.
    `broker`: "" starts one as a child. `metrics`: HOST:PORT for Prometheus to scrape, "" for none.
    `unsafe_no_jail`: urabrask alone evaluates without isolation, and promotes nothing. `forge_targets`: what tezzeret
    makes kernels for; empty stands for the CPU and this machine's devices. `while_used`: stop when the last run that
    uses the runtime has ended.
    """

    home: Path = Path(".esper")
    address: str = "127.0.0.1:0"
    workers: int = field(default_factory=usual_workers)
    components: tuple[str, ...] = COMPONENTS
    peers: Mapping[str, str] = field(default_factory=dict)
    broker: str = ""
    metrics: str = ""
    unsafe_no_jail: bool = False
    forge_targets: tuple[str, ...] = ()
    while_used: bool = False

    def __post_init__(self) -> None:
        if _port_of(self.address) is None:
            raise InvalidConfig(f"--address must be HOST:PORT, got {self.address!r}; port 0 takes a free one")
        if self.workers < 1:
            raise InvalidConfig(f"--workers must be >= 1, got {self.workers}")
        if self.unsafe_no_jail and self.components != ("urabrask",):
            raise InvalidConfig(
                f"--unsafe-no-jail is for `esper serve urabrask` alone, got it for {', '.join(self.components)}; "
                "an evaluator without isolation promotes nothing, so a runtime with it would never grow"
            )
        if self.metrics and ("nissa" not in self.components or _port_of(self.metrics) is None):
            raise InvalidConfig(
                f"--metrics must be HOST:PORT, with a port below 65536, of a process that serves nissa, got "
                f"{self.metrics!r}"
            )
        check_targets(self.forge_targets)
        if self.forge_targets and "tezzeret" not in self.components:
            raise InvalidConfig(f"--forge-targets is for tezzeret, got it for {', '.join(self.components)}")
        if self.broker:
            _read_broker(self.broker)
        elif len(self.components) == 1:
            raise InvalidConfig(
                "a service alone needs a broker: --broker nats://TOKEN@HOST:PORT, with the address that `esper up` "
                "prints and the token in its token file"
            )


async def serve(options: ServeOptions, *, say: Callable[[str], None] = print) -> int:
    """Serve until SIGTERM or Ctrl-C. Returns the exit status.

    Raises Conflict where the home is in use, Unavailable where the address, the broker or
    isolation cannot be had; each names its remedy.
    """
    home = Home(options.home)
    torch.set_num_threads(1)  # what the components compute must not take the cores that training has
    stopping = _stop_event()
    part = "runtime" if len(options.components) > 1 else options.components[0]
    kept = [name for name in options.components if name in KEEPERS and name != part]
    # the use goes last: who finds it free again finds the home free too
    with contextlib.closing(Use(home)) as use, home.held(part, *kept):
        async with AsyncExitStack() as stack:
            if options.while_used:
                stack.callback(asyncio.create_task(_stop_unused(use, stopping)).cancel)
            platform = await _start(options, home, stack)
            contact = _contact(platform, home, options.while_used)
            if part == "runtime":
                home.publish(contact)
                stack.callback(home.withdraw)
            say(_greeting(part, contact))
            await stopping.wait()
    return 0


async def _start(options: ServeOptions, home: Home, stack: AsyncExitStack) -> Platform:
    token = home.make_token()
    roots = trust_of(home, options.components)
    where = _where_it_was(home) if len(options.components) > 1 else {}
    broker, address = _broker(options, home, stack, where.get("broker", 0))
    metrics = Metrics() if "nissa" in options.components else None
    bus = await JetStreamBus.connect(address, name=f"esper-{os.getpid()}")
    stack.push_async_callback(bus.close)
    platform = Platform(
        home=home,
        bus=bus,
        server=Server(tokens={token}, observe=metrics.observe_call if metrics else None),
        token=token,
        workers=options.workers,
        components=options.components,
        peers=options.peers,
        stack=stack,
        roots=roots,
        metrics=metrics,
        unsafe_no_jail=options.unsafe_no_jail,
        forge_targets=_forge_targets(options),
    )
    if options.metrics and metrics is not None:
        stack.callback(_expose(options.metrics, metrics))
    platform.broker_url = address.url
    if broker is not None:
        platform.task("oona/broker", functools.partial(keep_broker, broker))
    for component in options.components:
        await (BUILDERS | {"nissa": build_nissa})[component](platform)
    host, _, asked = options.address.rpartition(":")
    port = await platform.server.start(f"{host}:{int(asked) or where.get('address', 0)}")
    stack.push_async_callback(platform.server.stop, 2.0)
    stack.push_async_callback(platform.close)
    platform.address = f"{host}:{port}"
    platform.start_tasks()
    await platform.ready()
    return platform


async def _stop_unused(use: Use, stopping: asyncio.Event) -> None:
    while not use.alone():
        await asyncio.sleep(USED_CHECK_S)
    log.info("nobody uses this runtime any more; it ends")
    stopping.set()


def _forge_targets(options: ServeOptions) -> tuple[str, ...]:
    if "tezzeret" not in options.components:
        return ()
    return check_targets(options.forge_targets) if options.forge_targets else default_targets()


async def keep_broker(broker: Broker) -> None:
    """Start our own broker again, on its port and store, when it has ended; the bus finds it there by itself."""
    while True:
        await asyncio.sleep(BROKER_CHECK_S)
        if broker.pid is None:
            log.warning("the broker has ended; it is started again on port %d", broker.port)
            broker.restart()


def _where_it_was(home: Home) -> dict[str, int]:
    """Free ports that a runtime of this home had when it was killed: its trainers look for it there."""
    try:
        contact = json.loads(home.contact_file.read_text())
        ports = {name: _port_of(contact[name]) for name in ("address", "broker")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: port for name, port in ports.items() if port and _free(port)}


def _port_of(address: str) -> int | None:
    host, _, port = address.rpartition(":")
    return int(port) if host and port.isdecimal() and int(port) < 1 << 16 else None


def _free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def _broker(options: ServeOptions, home: Home, stack: AsyncExitStack, port: int) -> tuple[Broker | None, Address]:
    """One of our own, or the broker named, which is somebody else's to keep."""
    if options.broker:
        return None, _read_broker(options.broker)
    broker = Broker(home.folder("broker"), token=home.make_token(), options=BrokerOptions(port=port))
    stack.enter_context(broker)
    return broker, broker.address


def _read_broker(url: str) -> Address:
    scheme, _, rest = url.partition("://")
    token, _, host = rest.rpartition("@")
    if scheme != "nats" or _port_of(host) is None:
        raise InvalidConfig(f"--broker must be nats://TOKEN@HOST:PORT, got {url.replace(token or ' ', '***')!r}")
    return Address(f"nats://{host}", token=token or None)


def _expose(address: str, metrics: Metrics) -> Callable[[], None]:
    """Serve metrics over HTTP; returns what ends it."""
    host, _, port = address.rpartition(":")
    return metrics.expose(int(port), host)[1]


def _contact(platform: Platform, home: Home, while_used: bool) -> Contact:
    return Contact(
        address=platform.address,
        token_file=str(home.token_file.absolute()),
        pid=os.getpid(),
        broker=platform.broker_url,
        version=version("esper"),
        while_used=while_used,
    )


def _greeting(part: str, contact: Contact) -> str:
    return (
        f"{part} serves on {contact.address}\n"
        f"token file   {contact.token_file}\n"
        f"broker       {contact.broker}\n"
        f"stop it with Ctrl-C, or: kill {contact.pid}"
    )


def _stop_event() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stopping.set)
    return stopping
