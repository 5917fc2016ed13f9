"""What an artifact's files hold: the graph, the weights and the compiled form. Only verified bytes come here."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import safetensors
import safetensors.torch
from google.protobuf import json_format
from torch import Tensor

from esper.api.common.v1 import blueprint_pb2
from esper.artifact.body import EXPORTED, GRAPH, MODULE, REQUIRED_FILES, WEIGHTS, Body, ParameterEntry
from esper.artifact.regions import REGIONS, SEARCH, WHY_NOT_JOINED
from esper.artifact.script import CompiledForm, load_script
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import read_graph, write_graph
from esper.blueprint.ir import Graph
from esper.blueprint.plan import plan
from esper.errors import Corrupt, InvalidBlueprint

_KERNEL_FILE = re.compile(r"triton/region[1-9][0-9]?(\.py|_(joined_)?(forward|backward)\.(json|cubin|hsaco))")


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of one artifact, interpreted."""

    body: Body
    graph: Graph
    weights: Mapping[str, Tensor]
    form: CompiledForm


def open_contents(body: Body, files: Mapping[str, bytes]) -> Contents:
    """Interpret the files of a verified artifact. Raises Corrupt where they do not fit the body or each other."""
    check_names(files)
    graph = open_graph(body, files[GRAPH])
    return Contents(body, graph, open_weights(body, files[WEIGHTS]), open_form(body, files[MODULE]))


def check_names(names: Iterable[str]) -> None:
    """Raises Corrupt for a file that no pipeline writes."""
    known = {*REQUIRED_FILES, EXPORTED, REGIONS, SEARCH, WHY_NOT_JOINED}
    if unknown := sorted(name for name in names if name not in known and not _KERNEL_FILE.fullmatch(name)):
        raise Corrupt(f"file {unknown[0][:80]!r} is none that a pipeline writes; compile the kernel again")


def write_graph_file(graph: Graph) -> bytes:
    """graph.json: the protobuf JSON form, keys sorted, no white space."""
    fields = json_format.MessageToDict(write_graph(graph), preserving_proto_field_name=True)
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def read_graph_file(data: bytes) -> Graph:
    """Raises Corrupt for bytes that are no graph in JSON, InvalidBlueprint for a graph that is not well formed."""
    try:
        message = json_format.Parse(data, blueprint_pb2.Graph(), max_recursion_depth=16)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise Corrupt(f"{GRAPH} of {len(data)} bytes is no blueprint graph: {error}") from error
    return read_graph(message)


def open_graph(body: Body, data: bytes) -> Graph:
    """The graph, which is the one the body names and has the parameters the body lists."""
    try:
        graph = read_graph_file(data)
        concrete = plan(graph, body.interface)
    except InvalidBlueprint as error:
        raise Corrupt(f"{GRAPH} cannot be lowered for {body.interface}: {error}") from error
    seen = blueprint_id(graph)
    if seen != body.blueprint_id:
        raise Corrupt(f"{GRAPH} is blueprint {seen}; the body says {body.blueprint_id}")
    if parameter_entries(graph, body) != body.parameters:
        raise Corrupt(f"{GRAPH} has parameters {concrete.parameter_names} of {concrete.shapes}; the body lists others")
    return graph


def parameter_entries(graph: Graph, body: Body) -> tuple[ParameterEntry, ...]:
    """The parameters of `graph` at the body's interface, in canonical order."""
    concrete = plan(graph, body.interface)
    pairs = zip(concrete.parameter_names, concrete.shapes, strict=True)
    return tuple(ParameterEntry(name, shape, body.interface.dtype) for name, shape in pairs)


def write_weights_file(weights: Mapping[str, Tensor]) -> bytes:
    """weights.safetensors; the same tensors give the same bytes."""
    return safetensors.torch.save({name: tensor.detach().contiguous() for name, tensor in weights.items()})


def open_weights(body: Body, data: bytes) -> dict[str, Tensor]:
    """The weights by name, in the body's order and as the body describes them."""
    try:
        weights = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise Corrupt(f"{WEIGHTS} of {len(data)} bytes is no safetensors file: {error}") from error
    seen = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in weights.items()}
    wanted = {parameter.name: (parameter.shape, parameter.dtype) for parameter in body.parameters}
    if seen != wanted:
        odd = sorted(name for name in seen.keys() | wanted.keys() if seen.get(name) != wanted.get(name))
        raise Corrupt(f"{WEIGHTS}: {', '.join(odd)[:200]} differ from the parameters the body lists")
    return {parameter.name: weights[parameter.name] for parameter in body.parameters}


def open_form(body: Body, data: bytes) -> CompiledForm:
    """module.pt as a callable on (x, *parameters), in the body's order."""
    return load_script(data, len(body.parameters))
