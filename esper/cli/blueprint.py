"""`esper blueprint`: show, compare and write blueprints, as text, JSON and pictures."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper.errors import Conflict, InvalidBlueprint, InvalidRequest, NotFound
from esper.nissa.files import read_text

if TYPE_CHECKING:
    from esper.blueprint.ir import Graph

_ENDINGS = (".txt", ".json", ".blueprint")
# What a new file starts from: a template that is often of use for the kind.
_START = {"vector": "bottleneck_mlp", "tokens": "prenorm_mlp", "map1d": "depthwise_separable", "map2d": "conv3"}
_NAME = "a file, a title of the template library, or an alias or id (six digits or more) of a running runtime's library"


def add(commands: Any) -> None:
    blueprint = commands.add_parser("blueprint", help="show, compare and write blueprints")
    verbs = blueprint.add_subparsers(dest="verb", required=True, metavar="VERB")
    show = _verb(verbs, "show", "show a blueprint, its costs and where it fits", run_show)
    show.add_argument("name", help=_NAME)
    _outputs(show)
    compare = _verb(verbs, "diff", "what is otherwise in the second blueprint than in the first", run_diff)
    compare.add_argument("first", help=_NAME)
    compare.add_argument("second", help="as the first")
    compare.add_argument("--json", action="store_true", help="as JSON")
    new = _verb(verbs, "new", "write a file to start from (--kind), or check one: id, costs, where it fits", run_new)
    new.add_argument("file", help="ends in .json for JSON; text otherwise")
    new.add_argument("--kind", choices=tuple(_START), help="write the file, for this kind of tensor")
    _outputs(new)


def _verb(verbs: Any, name: str, words: str, do: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=words)
    parser.add_argument("--home", default=".esper", help="folder of the runtime (default .esper)")
    parser.set_defaults(do=do)
    return parser


def _outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the blueprint as JSON and nothing else")
    parser.add_argument("--svg", metavar="FILE", default="", help="write a picture as well")
    parser.add_argument("--channels", type=int, default=64, help="channels that costs are for (default 64)")


def run_show(options: argparse.Namespace) -> int:
    _refuse_to_replace(options.svg, Path(options.name))
    return _print(graph_of(options.name, options.home), options, options.name)


def run_diff(options: argparse.Namespace) -> int:
    from esper.blueprint.canonical import blueprint_id
    from esper.blueprint.difference import difference

    first, second = (graph_of(name, options.home) for name in (options.first, options.second))
    changes = difference(first, second)
    if options.json:
        ids = {"first": blueprint_id(first), "second": blueprint_id(second)}
        print(json.dumps(ids | {"changes": [{"mark": c.mark, "text": c.text} for c in changes]}, indent=2))
        return 0
    same = f"the same blueprint, {blueprint_id(first)[:16]}"
    print("\n".join(map(str, changes)) or same)
    return 0


def run_new(options: argparse.Namespace) -> int:
    path = Path(options.file)
    _refuse_to_replace(options.svg, path)
    if path.exists():
        if options.kind:
            raise Conflict(f"{path} exists and is left as it is; leave --kind out to check it, or name another file")
        return _print(_read(path), options, path.name)
    if not options.kind:
        raise NotFound(f"there is no file {path}; --kind {'|'.join(_START)} writes one to start from")
    return _print(_write(path, _START[options.kind]), options, path.name)


def graph_of(name: str, home: str) -> "Graph":
    """The blueprint of a file, of the template library, or of the library at `home`, whichever has the name first."""
    from esper.karn.templates import TEMPLATES

    path = Path(name)
    if path.is_file() or path.suffix in _ENDINGS:
        return _read(path)
    if name in TEMPLATES:
        return TEMPLATES[name].graph
    return _from_library(name, home)


def _read(path: Path) -> "Graph":
    from esper.blueprint.document import read_json
    from esper.blueprint.parse import parse

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} cannot be read as text: {error}") from None
    try:
        return read_json(text) if path.suffix == ".json" else parse(text)
    except InvalidBlueprint as error:
        raise InvalidBlueprint(f"{path}: {error}", error.fields) from None


def _write(path: Path, title: str) -> "Graph":
    from esper.blueprint.document import write_json
    from esper.blueprint.text import show
    from esper.karn.templates import TEMPLATES

    graph = TEMPLATES[title].graph
    head = (
        f"# {title}: {TEMPLATES[title].source}\n# docs/blueprint-ir.md has the operators; `esper blueprint new {path}`"
    )
    text = write_json(graph) if path.suffix == ".json" else f"{head} checks this file.\n{show(graph)}"
    _save(path, text)
    return graph


def _refuse_to_replace(svg: str, blueprint: Path) -> None:
    """Raise Conflict where the picture would replace the blueprint, or a file that is no picture."""
    if not svg:
        return
    path = Path(svg)
    if path.resolve() == blueprint.resolve():
        raise Conflict(f"--svg {svg} would replace the blueprint itself; name another file")
    if path.is_file() and "<svg" not in (read_text(path) or "")[:1000]:
        raise Conflict(f"--svg {svg} would replace a file that is no SVG; name another file")


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from None


def _from_library(name: str, home: str) -> "Graph":
    from esper.api.urza.v1 import library_pb2 as pb
    from esper.api.urza.v1 import library_pb2_grpc
    from esper.blueprint.codec import read_graph
    from esper.blueprint.parse import nearest
    from esper.cli.library import blueprint_named
    from esper.karn.templates import TEMPLATES
    from esper.rpc.client import open_channel
    from esper.runtime.home import Home

    try:
        contact = Home(Path(home)).contact()
    except NotFound as error:
        close = nearest(name, TEMPLATES)
        raise NotFound(f"{name!r} is no file and no title of the template library{close}; {error}") from None

    async def ask() -> Any:
        async with open_channel(contact.address, token=contact.token()) as channel:
            stub: Any = library_pb2_grpc.LibraryServiceStub(channel)
            number = await blueprint_named(name, channel)
            return (await stub.GetBlueprint(pb.GetBlueprintRequest(blueprint_id=number))).blueprint.graph

    return read_graph(asyncio.run(ask()))


def _print(graph: "Graph", options: argparse.Namespace, name: str) -> int:
    from esper.blueprint.canonical import blueprint_id
    from esper.blueprint.describe import describe
    from esper.blueprint.document import write_json
    from esper.blueprint.picture import picture
    from esper.blueprint.text import show
    from esper.tezzeret.birth import zero_at_birth

    said = f"{show(graph)}\nid {blueprint_id(graph)}\n{zero_at_birth(graph)[1]}\n{describe(graph, options.channels)}"
    if options.svg:
        _save(Path(options.svg), picture(graph, name))
    sys.stdout.write(write_json(graph) if options.json else said)
    return 0
