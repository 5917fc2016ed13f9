"""A library with reports of kernels that were never built: time and memory follow a law that is known."""

import hashlib

from esper.api.common.v1.resource_pb2 import PageReply
from esper.api.urabrask.v1.evaluation_pb2 import Report
from esper.api.urza.v1 import library_pb2 as pb
from esper.blueprint.canonical import blueprint_id
from esper.blueprint.codec import write_graph, write_interface
from esper.blueprint.infer import infer
from esper.blueprint.interface import Interface, Kind
from esper.errors import NotFound
from esper.urza.port import StoredReport

MAP = Interface(Kind.MAP2D, 16)
CPU = "Acme 9000"
TARGET = "Acme 9000, 1 threads"
BATCH, SIDE = 16, 8


def law(graph, interface=MAP):
    """(microseconds, bytes) on the input that kernels are measured with."""
    cost = infer(graph, interface, SIDE * SIDE)
    time = 5.0 * len(graph.nodes) + 1e-4 * cost.forward_flops(BATCH, SIDE * SIDE)
    return time, int(4 * (cost.activation_elements(BATCH, SIDE * SIDE) + 3 * cost.parameter_count))


class Evaluations:
    """Of the library, what Karn reads measurements from. `calls`: of each method, by name."""

    def __init__(self):
        self.reports, self.kernels, self.graphs = [], {}, {}
        self.calls = {"list_reports": 0, "get_kernel": 0, "get_blueprint": 0}

    def measure(self, graph, interface=MAP, **fields):
        """Add a kernel of the graph and a report on it; its name."""
        number = str(len(self.reports))
        artifact_id = fields.pop("artifact_id", hashlib.sha256(number.encode()).hexdigest())
        name = blueprint_id(graph)
        self.graphs[name] = write_graph(graph)
        kernel = pb.Kernel(artifact_id=artifact_id, blueprint_id=name, interface=write_interface(interface))
        self.kernels[artifact_id] = kernel
        time, peak = law(graph, interface)
        said = {"forward_us_p50": time, "peak_bytes": peak, "machine": {"cpu": CPU, "threads": "1"}}
        said["input_shape"] = [BATCH, interface.channels, SIDE, SIDE]
        body = Report(artifact_id=artifact_id, **(said | fields)).SerializeToString()
        self.reports.insert(0, StoredReport(f"reports/{number:0>64}", artifact_id, body))
        return artifact_id

    async def list_reports(self, artifact_id, page):
        assert not artifact_id
        self.calls["list_reports"] += 1
        start = next((i + 1 for i, one in enumerate(self.reports) if one.name == page.token), 0)
        sent = self.reports[start : start + page.size]
        more = start + page.size < len(self.reports)
        return sent, PageReply(next_token=sent[-1].name if more else "")

    async def get_kernel(self, request):
        self.calls["get_kernel"] += 1
        if request.artifact_id not in self.kernels:
            raise NotFound(f"kernels/{request.artifact_id}: no such kernel in this library")
        return pb.GetKernelResponse(kernel=self.kernels[request.artifact_id])

    async def get_blueprint(self, request):
        self.calls["get_blueprint"] += 1
        graph = self.graphs[request.blueprint_id]
        return pb.GetBlueprintResponse(blueprint=pb.Blueprint(blueprint_id=request.blueprint_id, graph=graph))
