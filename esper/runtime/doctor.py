"""Examine this machine and the runtime, one finding per part; a part that is absent names its remedy."""

import asyncio
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esper.errors import EsperError, NotFound
from esper.rpc.client import open_channel
from esper.runtime.home import Contact, Home


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    ok: bool
    detail: str


def examine(home: str) -> list[Finding]:
    """What is here, and what is not and why."""
    parts: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores"),
        ("torch", _torch),
        ("cuda", _cuda),
        ("ops", _ops),
        ("compiler", _compiler),
        ("broker", _broker),
        ("isolation", _isolation),
        ("forge", lambda: _forge(Home(Path(home)))),
        ("runtime", lambda: _runtime(Home(Path(home)))),
    ]
    return [_find(name, part) for name, part in parts]


def _find(name: str, part: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, part())
    except EsperError as error:
        return Finding(name, False, str(error))
    except _Absent as absent:
        return Finding(name, False, str(absent))
    except Exception as error:  # one part that is broken hides no other
        return Finding(name, False, f"it cannot be examined: {type(error).__name__}: {error}")


class _Absent(Exception):
    """Something optional is not here; the text says what to do about it."""


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        raise _Absent("torch sees no CUDA device; everything runs on the CPU")
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _ops() -> str:
    from esper.ops import backends

    absent = [f"{b}: {why}" for b in ("cpp", "cuda", "triton") if (why := backends.why_not(b, "cpu"))]
    return f"on the CPU: {backends.chosen('cpu')}" + (f" (not {'; not '.join(absent)})" if absent else "")


def _compiler() -> str:
    found = [name for name in ("g++", "nvcc") if shutil.which(name)]
    if not found:
        raise _Absent("no C++ compiler: ops run as torch expressions; install g++ and run `make` again")
    return ", ".join(found)


def _broker() -> str:
    from esper.oona.broker import find_server, server_version

    path = find_server()
    return f"{server_version(path)} at {path}"


def _isolation() -> str:
    from esper.urabrask.probe import probe

    isolation = probe()
    if not isolation.in_force:
        raise _Absent(f"kernels cannot be evaluated here, so none can be promoted: {isolation.missing}")
    return isolation.how


def _forge(home: Home) -> str:
    """What the forge that runs makes kernels for; without a runtime, what one that is started here would."""
    from esper.runtime.targets import default_targets
    from esper.tezzeret.kernels import MACHINE_CODE, triton_version

    try:
        contact = home.contact()
    except NotFound:
        says = f"kernels for {', '.join(default_targets())} if `esper up` is started here"
    else:
        says = f"kernels for {', '.join(asyncio.run(_forge_targets(contact))) or 'targets that it does not say'}"
    if not triton_version():
        raise _Absent(f"{says}; for others Triton is absent: pip install 'esper[triton]'")
    return f"{says}; --forge-targets takes {', '.join(MACHINE_CODE)} beside cpu"


async def _forge_targets(contact: Contact) -> list[str]:
    from esper.api.tezzeret.v1 import forge_pb2, forge_pb2_grpc
    from esper.tezzeret.codec import read_target

    async with open_channel(contact.address, token=contact.token()) as channel:
        stub: Any = forge_pb2_grpc.ForgeServiceStub(channel)
        reply = await stub.GetForgeStatus(forge_pb2.GetForgeStatusRequest(), timeout=5)
    return [read_target(target) for target in reply.targets]


def _runtime(home: Home) -> str:
    contact = home.contact()
    return asyncio.run(_health(contact))


async def _health(contact: Contact) -> str:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    async with open_channel(contact.address, token=contact.token()) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=""), timeout=5)
    state = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return f"{state} on {contact.address}, process {contact.pid}, broker {contact.broker}"
