"""`esper doctor`: what runs where, which acceleration is on, and why not."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="what runs where, which acceleration is on, and why not")
    doctor.add_argument("--home", default=".esper", help="folder of the runtime (default .esper)")
    doctor.set_defaults(do=run)


def run(options: argparse.Namespace) -> int:
    from esper.runtime.doctor import examine

    findings = examine(options.home)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{'ok ' if finding.ok else 'no '} {finding.name:{width}}  {finding.detail}")
    return 0
