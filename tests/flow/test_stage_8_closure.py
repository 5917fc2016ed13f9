"""Stage 8, closure: what grew is part of the model, was worth it, is remembered, and everybody is well."""

import asyncio
import math

import pytest

from esper.api.nissa.v1 import observability_pb2, observability_pb2_grpc
from esper.api.simic.v1 import replay_pb2, replay_pb2_grpc
from esper.api.tamiyo.v1 import controller_pb2, controller_pb2_grpc
from esper.api.urza.v1 import library_pb2, library_pb2_grpc
from esper.blueprint.codec import write_interface
from tests.runtime.processes import esper

FINAL = {"FOSSILIZED", "CULLED", "CANCELLED", "DORMANT"}


def test_an_adaptation_has_succeeded(stage):
    assert len(stage.file("lineage.json")["fossils"]) > 0


async def test_the_descent_of_what_was_kept_is_told(stage):
    """The library is asked soon after a fossil, not in the same moment."""
    names = {fossil["blueprint_id"] for fossil in stage.file("lineage.json")["fossils"]}
    async with asyncio.timeout(30):
        while not names <= stage.file("lineage.json")["blueprints"].keys():
            await asyncio.sleep(0.1)
    blueprints = stage.file("lineage.json")["blueprints"]
    assert all(blueprints[name]["author"] for name in names)
    assert all(parent in blueprints for one in blueprints.values() for parent in one["parents"])


def test_every_seed_has_come_to_an_end(stage):
    last = {}
    for event in stage.events("transition"):
        last[event["seed"]] = event["to"]
    assert set(last.values()) <= FINAL


async def test_the_fossil_beat_its_twin_on_held_out_data(stage, channel):
    stub = controller_pb2_grpc.ControllerServiceStub(channel)
    decisions = (await stub.ListDecisions(controller_pb2.ListDecisionsRequest(run_id="stages"))).decisions
    kept = [d.verdict for d in decisions if d.HasField("verdict") and d.verdict.keep]
    assert kept
    for verdict in kept:
        assert verdict.gain > 0.01 and verdict.gain > verdict.standard_error > 0
        assert 0 < verdict.false_keep_rate < 1 and math.isfinite(verdict.gain)


async def test_the_experience_is_kept_for_learning(channel, stage):
    stub = replay_pb2_grpc.ReplayServiceStub(channel)
    request = replay_pb2.ListExperiencesRequest(filter=replay_pb2.Filter(run_id="stages"))
    experiences = (await stub.ListExperiences(request)).experiences
    ends = ("FOSSILIZED", "CULLED", "CANCELLED")
    ended = {event["seed"] for event in stage.events("transition") if event["to"] in ends}
    assert {f"{e.report.seed.site}/{e.report.seed.slot}" for e in experiences} == ended


@pytest.mark.slow
async def test_what_was_judged_is_in_the_architects_archive(channel, stage):
    """It looks once a minute."""
    replay, library = replay_pb2_grpc.ReplayServiceStub(channel), library_pb2_grpc.LibraryServiceStub(channel)
    request = replay_pb2.ListExperiencesRequest(filter=replay_pb2.Filter(only_judged=True))
    kernels = {e.report.artifact_id for e in (await replay.ListExperiences(request)).experiences}
    judged = set()
    for name in kernels:
        kernel = (await library.GetKernel(library_pb2.GetKernelRequest(artifact_id=name))).kernel
        judged.add(f"blueprints/{kernel.blueprint_id}")
    assert judged
    kept = set()
    async with asyncio.timeout(90):
        while not kept:
            await asyncio.sleep(0.5)
            entries = (await library.ListAliases(library_pb2.ListAliasesRequest())).aliases
            kept = {entry.target_name for entry in entries if entry.alias.startswith("karn/")}
    assert kept <= judged


async def test_all_components_are_well_and_kernels_are_at_hand(channel, loop):
    stub = observability_pb2_grpc.ObservabilityServiceStub(channel)
    health = await stub.GetSystemHealth(observability_pb2.GetSystemHealthRequest())
    assert health.healthy, [s for s in health.services if not s.serving]
    assert {s.component for s in health.services} >= {
        *("tolaria", "kasmina", "tamiyo", "karn", "urza", "tezzeret", "urabrask", "oona", "simic", "emrakul", "nissa")
    }
    library = library_pb2_grpc.LibraryServiceStub(channel)
    request = library_pb2.SearchKernelsRequest(
        interface=write_interface(loop.handle["conv1"].site.interface), limit=100
    )
    found = (await library.SearchKernels(request)).matches
    assert any(match.kernel.status == library_pb2.KERNEL_STATUS_VALIDATED for match in found)


async def test_the_audit_trail_is_whole(channel):
    stub = observability_pb2_grpc.ObservabilityServiceStub(channel)
    verified = await stub.VerifyAuditTrail(observability_pb2.VerifyAuditTrailRequest())
    assert verified.intact and verified.entries > 0


@pytest.mark.parametrize("command", ["show", "rebuild", "export"])
def test_the_run_can_be_shown_rebuilt_and_exported(stage, command):
    done = esper(command, "stages", folder=stage.run.parents[1])
    assert done.returncode == 0, done.stderr
    assert "stages" in done.stdout
