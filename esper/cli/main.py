"""The `esper` command: one parser, one function per command."""

import argparse
import sys
from collections.abc import Sequence

from esper.cli import blueprint, control, doctor, library, runs, services, training
from esper.errors import EsperError

_COMMANDS = (training, services, runs, control, library, blueprint, doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. An error a user can cause is one line on stderr and status 1."""
    options = parser().parse_args(arguments)
    try:
        return int(options.do(options))
    except EsperError as error:
        print(f"esper: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("esper: stopped", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="esper", description="Grows neural networks while they train.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in _COMMANDS:
        group.add(commands)
    return top
