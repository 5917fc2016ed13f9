"""The `esper` command: one parser, one function per command."""

import argparse
import os
import sys
from collections.abc import Sequence

from esper.cli import blueprint, control, doctor, library, runs, services, training
from esper.errors import EsperError

_COMMANDS = (training, services, runs, control, library, blueprint, doctor)
_CLOSED_PIPE = 141  # what a shell says of a process that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. An error a user can cause is said on stderr, with status 1; a reader who has enough is none."""
    options = parser().parse_args(arguments)
    try:
        status = int(options.do(options))
        sys.stdout.flush()
        return status
    except EsperError as error:
        print(f"esper: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("esper: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `esper runs | head`
        _discard_output()
        return _CLOSED_PIPE


def _discard_output() -> None:
    """What is not written yet goes nowhere, so that Python's own flush at its end does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="esper", description="Grows neural networks while they train.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in _COMMANDS:
        group.add(commands)
    return top
