"""Forge -> library -> evaluator -> library -> loader -> graft: forward, backward, optimiser step.

One blueprint of each kind goes the whole way, evaluated in an isolated process, and then
trains in a host exactly as the same graft does that was never compiled.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.api.urabrask.v1.evaluation_pb2 import KernelCharacterized
from esper.api.urza.v1 import library_pb2 as pb
from esper.artifact.bundle import Artifact
from esper.artifact.keys import SigningKey, TrustRoots
from esper.blueprint.codec import write_graph, write_interface
from esper.errors import Untrusted
from esper.host.forward import attach, detach
from esper.host.graft import Graft
from esper.host.proof import prove
from esper.host.sites import Site, select
from esper.host.surgery import add_newborns, home_group
from esper.karn.templates import TEMPLATES
from esper.kasmina import loader as loader_module
from esper.kasmina.cache import DISK, LIBRARY, KernelCache
from esper.kasmina.kernel import Kernel
from esper.kasmina.loader import KernelLoader
from esper.runtime.pool import Pool
from esper.tezzeret.forge import Forge
from esper.tezzeret.job import compile_job
from esper.urabrask.evaluator import Evaluator, EvaluatorOptions
from esper.urza.library import CentralLibrary
from esper.urza.service import open_library
from tests.tezzeret.fakes import DirectPool
from tests.urabrask.lab import Lab

FORGE, EVALUATION = SigningKey.generate(), SigningKey.generate()
ROOTS = TrustRoots((FORGE.public_key,), (EVALUATION.public_key,))
STEPS = 6


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


@dataclass
class Circle:
    """The components of one runtime, and what was published."""

    library: CentralLibrary
    forge: Forge
    evaluator: Evaluator
    heard: list[object]

    async def make(self, title: str, site: Site) -> str:
        """The artifact id of a promoted kernel of a template, for a site."""
        template = TEMPLATES[title]
        request = pb.CreateBlueprintRequest(graph=write_graph(template.graph), title=title, author="library")
        blueprint = (await self.library.create_blueprint(request)).blueprint
        record = await self.forge.compile(blueprint.blueprint_id, write_interface(site.interface))
        report = await self.evaluator.kernel_ready(self.heard[-1])
        assert report is not None
        assert report.passed, [check.detail for check in report.checks if not check.passed]
        return record.artifact_id


@pytest.fixture
async def circle(tmp_path: Path, lab: Lab) -> AsyncIterator[Circle]:
    library = await open_library(f"sqlite+aiosqlite:///{tmp_path}/library.db", str(tmp_path / "blobs"), ROOTS)
    heard: list[object] = []

    async def publish(message: object) -> None:
        heard.append(message)

    def now() -> datetime:
        return datetime.now(UTC)

    class LabPool(DirectPool):
        async def run(self, kind: str, payload: bytes, timeout_s: float) -> bytes:
            return await asyncio.to_thread(lab.call, f"esper.urabrask.job:{kind}_job", payload)

    forge = Forge(library, DirectPool({"compile": compile_job}), FORGE, publish, now)
    evaluator = Evaluator(library, library, LabPool({}), EVALUATION, ROOTS, publish, now, EvaluatorOptions(runs=10))
    async with forge, evaluator:
        yield Circle(library, forge, evaluator, heard)
    await library.close()


def loader(circle: Circle, folder: Path, loop: asyncio.AbstractEventLoop) -> KernelLoader:
    """A trainer's loader: its own folder, the library on another thread."""

    def fetch(artifact_id: str) -> Artifact:
        request = pb.DownloadKernelRequest(artifact_id=artifact_id)
        answer = asyncio.run_coroutine_threadsafe(circle.library.download_kernel(request), loop)
        return Artifact(*answer.result(20))

    return KernelLoader(KernelCache(folder, ROOTS, fetch))


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.second, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(self.embed(x)))).mean(1)


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


def data(host: type[nn.Module]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = {
        Images: lambda: torch.randn(6, 1, 6, 6, generator=generator),
        Words: lambda: torch.randint(11, (6, 7), generator=generator),
        Rows: lambda: torch.randn(6, 5, generator=generator),
    }[host]()
    return x, torch.randint(3, (6,), generator=generator)


def host_and_site(make: type[nn.Module]) -> tuple[nn.Module, Site]:
    torch.manual_seed(1)
    model, (x, _) = make(), data(make)
    (site,) = prove(model, select(model, "second"), lambda m: m(x))
    return model, site


@dataclass
class Trained:
    """A host after some steps with a graft in it."""

    losses: list[float]
    graft: dict[str, Tensor]
    host: dict[str, Tensor]
    born: dict[str, Tensor]
    host_gradients: dict[str, Tensor]


def train(make: type[nn.Module], kernel: Kernel, *, compiled: bool) -> Trained:
    """Graft `kernel` into a fresh host and train both: with its compiled form, or with its body."""
    model, site = host_and_site(make)
    x, y = data(make)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    body = kernel.body(5, torch.device("cpu"))
    born = {name: value.clone() for name, value in body.state_dict().items()}
    graft = Graft(body, site.layout, torch.tensor(1.0))
    graft.use_form(kernel.form if compiled else None)
    add_newborns(optimizer, graft.parameters(), home_group(optimizer, model, site.module))
    plain = model(x)
    attach(site, 0, graft)
    assert torch.equal(model(x), plain)  # zero at birth: nothing changes
    losses, gradients = [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if step == STEPS - 1:
            named = model.named_parameters()
            gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        optimizer.step()
        losses.append(loss.item())
    assert graft.fault == ""
    detach(site, 0)
    return Trained(losses, dict(body.state_dict()), dict(model.state_dict()), born, gradients)


@pytest.mark.parametrize(
    ("make", "title"),
    [(Images, "conv3"), (Images, "squeeze_excitation"), (Words, "single_head_attention"), (Rows, "bottleneck_mlp")],
)
async def test_a_template_goes_round_and_trains_like_its_graph(circle, tmp_path, monkeypatch, make, title):
    _, site = host_and_site(make)
    artifact_id = await circle.make(title, site)

    # the compiled form must be what trains, whichever form is faster on this machine today
    genuine = loader_module._step_s
    monkeypatch.setattr(
        loader_module, "_step_s", lambda call, h: genuine(call, h) - 10.0 * isinstance(call, torch._C.ScriptMethod)
    )
    trainer = loader(circle, tmp_path / "kernels", asyncio.get_running_loop())
    loaded = await asyncio.to_thread(trainer.load, artifact_id, site.interface, [(6, 6, 6)] if make is Images else [])
    assert loaded.chosen == "script"
    assert loaded.timings.source == LIBRARY

    compiled, eager = (train(make, loaded.kernel, compiled=flag) for flag in (True, False))
    # every parameter of the graft is learned by, and the host still is
    assert all(not torch.equal(compiled.graft[name], compiled.born[name]) for name in compiled.born)
    assert all(bool(gradient.isfinite().all()) for gradient in compiled.host_gradients.values())
    assert all(bool(compiled.host_gradients[name].any()) for name in ("second.weight", "head.weight"))
    assert compiled.losses[-1] < compiled.losses[0]
    # and it is the same training
    assert compiled.losses == pytest.approx(eager.losses, rel=1e-4)
    for name, want in {**eager.graft, **eager.host}.items():
        got = {**compiled.graft, **compiled.host}[name]
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


async def test_what_everybody_hears_on_the_way(circle):
    _, site = host_and_site(Rows)
    artifact_id = await circle.make("low_rank", site)
    ready, characterized = circle.heard
    assert ready.artifact_id == artifact_id
    assert isinstance(characterized, KernelCharacterized)
    assert characterized.promoted
    kernel = (await circle.library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))).kernel
    assert kernel.status == pb.KERNEL_STATUS_VALIDATED
    assert kernel.report_name == characterized.report_name
    blueprint = await circle.library.get_blueprint(pb.GetBlueprintRequest(blueprint_id=kernel.blueprint_id))
    assert blueprint.blueprint.status == pb.BLUEPRINT_STATUS_VALIDATED
    found = await circle.library.search_kernels(pb.SearchKernelsRequest(interface=write_interface(site.interface)))
    assert [match.kernel.artifact_id for match in found.matches] == [artifact_id]
    report = await circle.evaluator.report(kernel.report_name)
    assert report.artifact_id == artifact_id


async def test_before_it_is_promoted_no_trainer_runs_it(circle, tmp_path):
    _, site = host_and_site(Rows)
    request = pb.CreateBlueprintRequest(
        graph=write_graph(TEMPLATES["low_rank"].graph), title="low_rank", author="library"
    )
    blueprint = (await circle.library.create_blueprint(request)).blueprint
    record = await circle.forge.compile(blueprint.blueprint_id, write_interface(site.interface))
    trainer = loader(circle, tmp_path / "kernels", asyncio.get_running_loop())
    with pytest.raises(Untrusted, match='no "promoted" attestation'):
        await asyncio.to_thread(trainer.load, record.artifact_id, site.interface)
    await circle.evaluator.kernel_ready(circle.heard[-1])
    loaded = await asyncio.to_thread(trainer.load, record.artifact_id, site.interface)
    assert loaded.kernel.artifact_id == record.artifact_id


async def test_the_next_start_needs_no_library(circle, tmp_path):
    _, site = host_and_site(Rows)
    artifact_id = await circle.make("low_rank", site)
    folder = tmp_path / "kernels"
    await asyncio.to_thread(loader(circle, folder, asyncio.get_running_loop()).load, artifact_id, site.interface)

    def nobody(artifact_id: str) -> Artifact:
        raise AssertionError("the library was asked")

    again = KernelLoader(KernelCache(folder, ROOTS, nobody))
    assert (await asyncio.to_thread(again.load, artifact_id, site.interface)).timings.source == DISK


async def test_a_forge_that_is_started_again_makes_nothing_anew(circle):
    _, site = host_and_site(Rows)
    artifact_id = await circle.make("low_rank", site)
    kernel = (await circle.library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))).kernel
    pool = DirectPool({})
    again = Forge(circle.library, pool, FORGE, circle.forge._publish, circle.forge._clock)
    async with again:
        record = await again.compile(kernel.blueprint_id, write_interface(site.interface))
    assert (record.artifact_id, record.cached, pool.runs) == (artifact_id, True, [])


async def test_the_jobs_run_in_the_runtimes_own_pool(circle, tmp_path):
    """Single-use workers forked from a warm process, as `esper up` has them."""
    kinds = {
        "compile": "esper.runtime.compile_worker:compile_confined",
        "evaluate": "esper.urabrask.job:evaluate_job",
        "isolation": "esper.urabrask.job:isolation_job",
    }
    pool = Pool("test", kinds, size=1)
    await pool.start()
    try:
        await pool.preload("esper.tezzeret.job:warm_up", None)
        forge = Forge(circle.library, pool, FORGE, circle.forge._publish, circle.forge._clock)
        evaluator = Evaluator(
            *(circle.library, circle.library, pool, EVALUATION, ROOTS, circle.forge._publish, circle.forge._clock),
            EvaluatorOptions(runs=10),
        )
        async with forge, evaluator:
            _, site = host_and_site(Rows)
            pooled = Circle(circle.library, forge, evaluator, circle.heard)
            artifact_id = await pooled.make("wide_mlp", site)
        assert "network" in evaluator.isolation.how or "filter" in evaluator.isolation.how
    finally:
        await pool.stop()
    kernel = (await circle.library.get_kernel(pb.GetKernelRequest(artifact_id=artifact_id))).kernel
    assert kernel.status == pb.KERNEL_STATUS_VALIDATED
