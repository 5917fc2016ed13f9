"""The sculptor over a wire: Esper's own server and channel."""

import protovalidate
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from esper.api.common.v1 import resource_pb2
from esper.api.emrakul.v1 import sculptor_pb2 as pb
from esper.api.emrakul.v1 import sculptor_pb2_grpc as pb_grpc
from esper.api.kasmina.v1 import control_pb2
from esper.emrakul.advice import Sculptor, finding_log
from esper.emrakul.service import SculptorServicer
from esper.errors import InvalidRequest, NotFound, PreconditionFailed
from esper.rpc.client import open_channel
from esper.rpc.server import Server
from tests.tamiyo.scenes import RUN, noon, ref

from .fossils import fossil, point, probed

NAME = "esper.api.emrakul.v1.SculptorService"


class Runs:
    """The execution layer: one run, whose fossil fc1/0 can be switched off."""

    def __init__(self):
        self.sent = []

    async def send(self, command):
        protovalidate.validate(command)
        if command.run_id != RUN:
            raise NotFound(f"no run {command.run_id!r}")
        self.sent.append(command)

    async def probeable(self, run_id):
        if run_id == "bare":
            raise PreconditionFailed("run 'bare' has no fossil kept as a branch")
        if run_id != RUN:
            raise NotFound(f"no run {run_id!r}")
        return control_pb2.Probe(probe_id="operator-100", seeds=[ref("fc1", 0)])


@pytest.fixture
def runs():
    return Runs()


@pytest.fixture
async def channel(tmp_path, runs):
    findings = finding_log(tmp_path / "findings.sqlite")
    servicer = SculptorServicer(Sculptor(findings, noon), runs.send, runs.probeable)
    server = Server(tokens=None)
    server.mount(pb_grpc.add_SculptorServiceServicer_to_server, servicer)
    port = await server.start("127.0.0.1:0")
    channel = open_channel(f"127.0.0.1:{port}", token=None)
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(grace_s=0)
        findings.close()


@pytest.fixture
def stub(channel):
    return pb_grpc.SculptorServiceStub(channel)


async def advise(stub, packet):
    return await stub.Advise(pb.AdviseRequest(state=packet))


async def test_it_is_serving(channel):
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=NAME))
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_advice_comes_with_findings_and_the_position_they_are_kept_at(stub):
    first = await advise(stub, point(26, probed(-0.02, probe_id="p25")))
    assert (first.header.revision, len(first.findings), len(first.commands)) == (1, 1, 0)
    second = await advise(stub, point(41, probed(-0.02, probe_id="p40")))
    assert second.header.revision == 2
    assert second.findings[0].remove
    assert [c.WhichOneof("action") for c in second.commands] == ["remove"]


async def test_a_packet_that_breaks_its_rules_is_invalid(stub):
    for request in (pb.AdviseRequest(), pb.AdviseRequest(state=point(0)), pb.AdviseRequest(state=point(1, run_id="A"))):
        with pytest.raises(InvalidRequest):
            await stub.Advise(request)


async def test_findings_are_listed_newest_first_by_run(stub):
    both = {"seeds": [fossil("fc1"), fossil("fc2")]}
    for n in range(1, 4):
        await advise(stub, point(20 + n, probed(0.1, "fc1/0", f"p{n}"), **both))
    await advise(stub, point(30, probed(0.1, "fc2/0", "p9"), run_id="run-2", **both))
    pages, token = [], ""
    while True:
        page = resource_pb2.PageRequest(size=2, token=token)
        reply = await stub.ListProbes(pb.ListProbesRequest(run_id=RUN, page=page))
        pages.append([f.probe_id for f in reply.findings])
        token = reply.page.next_token
        if not token:
            break
    assert pages == [["p3", "p2"], ["p1"]]
    assert reply.header.revision == 4
    with pytest.raises(InvalidRequest, match="not issued for this list"):
        page = resource_pb2.PageRequest(token="AAAA")
        await stub.ListProbes(pb.ListProbesRequest(run_id=RUN, page=page))
    with pytest.raises(InvalidRequest, match="run_id"):
        await stub.ListProbes(pb.ListProbesRequest())


async def test_an_operator_asks_for_a_probe(stub, runs):
    reply = await stub.RequestProbe(pb.RequestProbeRequest(run_id=RUN))
    (command,) = runs.sent
    assert reply.probe_id == command.probe.probe_id == "operator-100"
    assert list(command.probe.seeds) == [ref("fc1", 0)]
    assert (command.issuer, command.reason) == ("operator", "asked for by an operator")


async def test_a_run_without_a_fossil_to_probe_says_so(stub):
    with pytest.raises(PreconditionFailed, match="no fossil kept as a branch"):
        await stub.RequestProbe(pb.RequestProbeRequest(run_id="bare"))
    with pytest.raises(NotFound, match="no run 'run-9'"):
        await stub.RequestProbe(pb.RequestProbeRequest(run_id="run-9"))


def removal(**fields):
    return pb.RemoveFossilRequest(**({"request_id": "r1", "seed": ref("fc1", 0), "reason": "too slow"} | fields))


async def test_an_operator_asks_for_a_removal_and_for_its_undoing(stub, runs):
    removed = await stub.RemoveFossil(removal())
    request = pb.RestoreFossilRequest(request_id="r1", seed=ref("fc1", 0), reason="it was needed")
    restored = await stub.RestoreFossil(request)
    assert [c.WhichOneof("action") for c in runs.sent] == ["remove", "restore"]
    assert [c.command_id for c in runs.sent] == [removed.command_id, restored.command_id]
    assert [c.reason for c in runs.sent] == ["too slow", "it was needed"]
    assert runs.sent[0].remove.seed == runs.sent[1].restore.seed == ref("fc1", 0)


async def test_the_same_request_again_is_the_same_command(stub):
    first = await stub.RemoveFossil(removal())
    assert (await stub.RemoveFossil(removal())).command_id == first.command_id
    assert (await stub.RemoveFossil(removal(request_id="r2"))).command_id != first.command_id


async def test_requests_without_an_id_are_each_their_own(stub):
    ids = {(await stub.RemoveFossil(removal(request_id=""))).command_id for _ in range(3)}
    assert len(ids) == 3


async def test_a_long_request_id_fits_into_a_command(stub, runs):
    await stub.RemoveFossil(removal(request_id="x" * 128))
    assert len(runs.sent) == 1  # `send` checks the contract


async def test_only_a_fossil_kept_as_a_branch_can_be_removed(stub, runs):
    with pytest.raises(PreconditionFailed, match=r"fc2/0 is no fossil kept as a branch.*run 'run-1' has fc1/0"):
        await stub.RemoveFossil(removal(seed=ref("fc2", 0)))
    assert not runs.sent


@pytest.mark.parametrize("fields", [{"seed": None}, {"reason": ""}, {"request_id": "x" * 129}])
async def test_an_incomplete_removal_is_invalid(stub, fields):
    with pytest.raises(InvalidRequest):
        await stub.RemoveFossil(removal(**fields))
