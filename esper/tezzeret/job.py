"""What runs inside a forge worker: one order in, one record and one unsigned artifact out.

Signing is the forge's own: a worker never has the key.
"""

import importlib
import resource
import sys
import time
from collections.abc import Callable

import torch

from esper.artifact.bundle import Artifact
from esper.artifact.script import load_script, save_script
from esper.blueprint.codec import write_interface
from esper.blueprint.emit import emit_function, torchscript
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.ir import CHANNELS, INPUT, Graph, Initialiser, Node, Parameter
from esper.errors import EsperError
from esper.tezzeret import codec
from esper.tezzeret.compile import build, reference, toolchain
from esper.tezzeret.exported import export_graph
from esper.tezzeret.timed import device_timer

KIND = "compile"
SEARCH_SHARE = 0.5  # of an order's time, by when aggressive has chosen; checking the kernels needs the rest


def compile_job(payload: bytes, _emit: Callable[[bytes], None] = lambda _part: None) -> bytes:
    """Compile `payload`'s order. A blueprint that cannot be compiled is an answer, with the failure in its record."""
    began, cpu_began = time.perf_counter(), _cpu_s()
    order = codec.read_order(payload)
    record = codec.new_record(order.blueprint_id, write_interface(order.interface), codec.number(order.pipeline))
    artifact: Artifact | None = None

    def time_left_s() -> float:
        return began + SEARCH_SHARE * order.limit_s - time.perf_counter()

    try:
        timer = device_timer(order.target, time_left_s) if order.pipeline == "aggressive" else None
        artifact = build(order.graph, order.interface, order.target, order.pipeline, order.limits, timer, time_left_s)
        record.artifact_id = artifact.artifact_id
    except EsperError as error:
        record.failure.CopyFrom(codec.write_failure(error))
    record.toolchain.update(toolchain(order.pipeline))
    record.wall_ms = (time.perf_counter() - began) * 1e3
    record.cpu_ms = (_cpu_s() - cpu_began) * 1e3
    record.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return codec.write_reply(record, artifact)


def _cpu_s() -> float:
    """Of this process and of those it has waited for: assemblers, and the one that interprets kernels."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def warm_up_standard(_argument: object = None) -> None:
    """`warm_up` for pipeline standard: torch.export and Triton are imported and used once, about 3 s."""
    warm_up()
    importlib.import_module("kernels_triton.compilation")
    channels = (("out", CHANNELS),)
    weight = Parameter("weight", (CHANNELS, CHANNELS), Initialiser.ZEROS)
    graph = Graph((Node("out", "linear", (INPUT,), ("weight",), channels),), (weight,), "out")
    export_graph(reference(graph, Interface(Kind.TOKENS, 2)))


def warm_up(_argument: object = None) -> None:
    """Do once what every compilation pays for at its first torch call; for a process that forks workers.

    Nothing is differentiated: a process that has run autograd on a CUDA build cannot be forked from.
    """
    weight = Parameter("weight", (CHANNELS, CHANNELS), Initialiser.ZEROS)
    graph = Graph((Node("out", "linear", (INPUT,), ("weight",), (("out", CHANNELS),)),), (weight,), "out")
    for interface in (Interface(Kind.VECTOR, 2), Interface(Kind.MAP2D, 2)):
        module = reference(graph, interface)
        form = load_script(save_script(torchscript(emit_function(graph, interface, "forward"))), 1)
        with torch.no_grad():
            form(interface.example(1, *[2] * interface.kind.position_dims), *module.ordered_parameters())
