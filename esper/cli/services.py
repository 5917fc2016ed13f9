"""`esper up` and `esper serve`."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from esper.runtime.cores import FEWEST, MOST, usual_workers

COMPONENTS = (
    "oona",
    "urza",
    "tezzeret",
    "urabrask",
    "karn",
    "kasmina",
    "tolaria",
    "tamiyo",
    "simic",
    "emrakul",
    "nissa",
)


def add(commands: Any) -> None:
    up = commands.add_parser("up", help="start the runtime: broker and all services, without training")
    up.add_argument(
        "--while-used", action="store_true", help="stop when the last run that uses it has ended, or if none comes"
    )
    _common(up)
    up.set_defaults(do=run_up)
    serve = commands.add_parser("serve", help="run one service alone")
    serve.add_argument("component", choices=COMPONENTS)
    serve.add_argument("--peer", action="append", default=[], metavar="COMPONENT=ADDRESS", help="where others listen")
    serve.add_argument("--broker", default="", help="URL of the NATS server, with its token: nats://TOKEN@HOST:PORT")
    serve.add_argument(
        "--unsafe-no-jail",
        action="store_true",
        help="urabrask only: run candidates without isolation, and promote none of them",
    )
    _common(serve)
    serve.set_defaults(do=run_serve)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--home", default=".esper", help="folder of the runtime (default .esper)")
    parser.add_argument("--address", default="127.0.0.1:0", help="where to listen; port 0 takes a free one")
    parser.add_argument("--metrics", default="", metavar="HOST:PORT", help="serve Prometheus metrics there, over HTTP")
    parser.add_argument(
        "--forge-targets",
        default="",
        metavar="NAMES",
        help="what the forge makes kernels for, e.g. cpu,sm_80,sm_90 (default cpu, and this machine's GPU)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=usual_workers(),
        metavar="N",
        help="jobs at a time of forge, evaluator and nursery (default: the cores it may use, "
        f"{FEWEST} to {MOST}; here %(default)s)",
    )


def run_up(options: argparse.Namespace) -> int:
    from esper.runtime.serve import ServeOptions, serve

    settings = ServeOptions(
        home=Path(options.home),
        address=options.address,
        workers=options.workers,
        metrics=options.metrics,
        forge_targets=_names(options.forge_targets),
        while_used=options.while_used,
    )
    return asyncio.run(serve(settings))


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",")) if listed else ()


def run_serve(options: argparse.Namespace) -> int:
    from esper.errors import InvalidConfig
    from esper.runtime.serve import ServeOptions, serve

    peers = dict(peer.partition("=")[::2] for peer in options.peer)
    if bare := [component for component, address in peers.items() if not address]:
        raise InvalidConfig(f"--peer must be COMPONENT=HOST:PORT, got {', '.join(bare)}")
    if unknown := set(peers) - set(COMPONENTS):
        raise InvalidConfig(f"--peer names {', '.join(sorted(unknown))}; components are {', '.join(COMPONENTS)}")
    settings = ServeOptions(
        home=Path(options.home),
        address=options.address,
        workers=options.workers,
        components=(options.component,),
        peers=peers,
        broker=options.broker,
        metrics=options.metrics,
        unsafe_no_jail=options.unsafe_no_jail,
        forge_targets=_names(options.forge_targets),
    )
    return asyncio.run(serve(settings))
