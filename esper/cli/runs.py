"""`esper runs`, `show`, `export`, `rebuild`: what a run leaves behind. No runtime is needed."""

import argparse
from typing import Any

from esper.errors import InvalidConfig
from esper.runtime.spec import RUNS


def add(commands: Any) -> None:
    listing = commands.add_parser("runs", help="list the runs below runs/")
    listing.set_defaults(do=run_list)
    show = commands.add_parser("show", help="show one run: result, fossils, decisions")
    show.add_argument("run")
    show.set_defaults(do=run_show)
    export = commands.add_parser(
        "export", help="write model.py and model.pt of a run to a folder, or a form for inference"
    )
    export.add_argument("run")
    export.add_argument("--to", default="", help="folder; the run's own if absent, for a form <run>/<form>")
    export.add_argument("--form", default="", help="int8, bf16, inference (frozen TorchScript) or aot (AOTInductor)")
    export.add_argument(
        "--drift-limit", type=float, help="most that the held-out loss of a form may change, relative; 0.01 if absent"
    )
    export.set_defaults(do=run_export)
    rebuild = commands.add_parser("rebuild", help="build a run's model again from lineage and weights, and compare")
    rebuild.add_argument("run")
    rebuild.set_defaults(do=run_rebuild)


def run_list(_options: argparse.Namespace) -> int:
    from esper.runtime.runs import list_runs, runs_table

    print(runs_table(list_runs(RUNS)))
    return 0


def run_show(options: argparse.Namespace) -> int:
    from esper.runtime.runs import describe, find_run

    print(describe(find_run(RUNS, options.run)))
    return 0


def run_export(options: argparse.Namespace) -> int:
    from esper.runtime.runs import find_run

    if options.form:
        print(_export_form(options))
        return 0
    if options.drift_limit is not None:
        raise InvalidConfig("--drift-limit is for a form; name one with --form")
    from esper.runtime.rebuild import export_run

    print(export_run(find_run(RUNS, options.run), options.to))
    return 0


def _export_form(options: argparse.Namespace) -> str:
    from esper.host.forms import refuse_unknown_form
    from esper.runtime.forms import DRIFT_LIMIT, export_form
    from esper.runtime.runs import find_run

    refuse_unknown_form(options.form)
    limit = DRIFT_LIMIT if options.drift_limit is None else options.drift_limit
    return export_form(find_run(RUNS, options.run), options.form, options.to, limit)


def run_rebuild(options: argparse.Namespace) -> int:
    from esper.runtime.rebuild import rebuild_run
    from esper.runtime.runs import find_run

    print(rebuild_run(find_run(RUNS, options.run)))
    return 0
