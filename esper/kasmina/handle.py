"""What a user holds of a wrapped model: the model's handle and one handle per site."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree

from esper.api.kasmina.v1 import telemetry_pb2
from esper.errors import InvalidRequest, NotFound, PreconditionFailed
from esper.host.forward import bypass, grafts_of, install, restore
from esper.host.kept import kept_buffers, kept_generators
from esper.host.sites import Site
from esper.kasmina.executor import Assignment, Executor
from esper.kasmina.kernel import Kernel
from esper.kasmina.lifecycle import IN_HOST, LIVE, SeedId, State
from esper.kasmina.pending import Pending
from esper.kasmina.table import StateLayout


class KernelSource(Protocol):
    """Where a handle gets kernels from by hand: verified, built and warm."""

    async def kernel(self, artifact_id: str, site: Site) -> Kernel: ...


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far a model with its seeds is from the model without them, on one input."""

    max_abs_difference: float
    mean_abs_difference: float
    identical: bool


class ModelHandle:
    """A wrapped model. `handle["conv1"]` is a site's handle; `handle.model` is the user's own object."""

    def __init__(self, model: nn.Module, executor: Executor, telemetry_enabled: bool = True) -> None:
        self.model = model
        self.executor = executor
        self.telemetry_enabled = telemetry_enabled
        self.optimizer: Optimizer | None = None  # set by esper.attach
        self.kernels: KernelSource | None = None  # set by esper.attach
        self.steps_done: Callable[[], int] = lambda: 0  # set by esper.attach
        self.health: Mapping[str, telemetry_pb2.HealthSignal] = {}  # latest reading of each site
        self.sites = {name: SiteHandle(self, name) for name in dict.fromkeys(seed.id.site for seed in executor.table)}
        self.pending: Pending | None = None  # set by esper.wrap

    def __getitem__(self, site: str) -> "SiteHandle":
        if site not in self.sites:
            raise NotFound(f"no site {site!r}; sites are {', '.join(self.sites)}")
        return self.sites[site]

    def prove(self, run: Callable[[nn.Module], object] | None = None) -> None:
        """Prove the sites that wait for a batch, by `run(model)`; nothing to do where they are proved.

        Raises PreconditionFailed where there is no batch to prove them on, WrapRefused as esper.wrap does.
        """
        if self.pending is not None and run is None:
            raise PreconditionFailed(
                "the layers are not proved yet: call the model on one batch first, or give esper.wrap an example"
            )
        if self.pending is not None and run is not None:
            self.executor.sites.update(self.pending.prove(run))
            self.pending = None

    @contextlib.contextmanager
    def without_seeds(self) -> Iterator[nn.Module]:
        """The model with every graft out of the way, fossils kept as branches included."""
        held = [site.module for site in self.executor.sites.values() if grafts_of(site.module)]
        for module in held:
            bypass(module)
        try:
            yield self.model
        finally:
            for module in held:
                install(module)

    def compare_with_original(self, *args: Any, **kwargs: Any) -> Comparison:
        """Call the model with and without its seeds on the same input and generators, without grad.

        Buffers and generators are as before. Raises InvalidRequest where the output has no
        floating-point tensor to compare.
        """
        grown = self._outputs(*args, **kwargs)
        with self.without_seeds():
            original = self._outputs(*args, **kwargs)
        if not grown:
            raise InvalidRequest("the model's output has no floating-point tensor, so there is nothing to compare")
        differences = [(a - b).abs().double() for a, b in zip(grown, original, strict=True)]
        return Comparison(
            max_abs_difference=max((float(d.max()) for d in differences if d.numel()), default=0.0),
            mean_abs_difference=float(torch.cat([d.reshape(-1) for d in differences]).mean()),
            identical=all(torch.equal(a, b) for a, b in zip(grown, original, strict=True)),
        )

    def _outputs(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        with torch.no_grad(), kept_generators(self.model), kept_buffers(self.model):
            return _leaves(self.model(*args, **kwargs))

    def need_optimizer(self) -> Optimizer:
        """The optimiser that trains this model. Raises PreconditionFailed before esper.attach."""
        if self.optimizer is None:
            raise PreconditionFailed(
                "a graft must be trained by your optimiser; call esper.attach(handle, optimizer, ...) first"
            )
        return self.optimizer

    def release(self) -> None:
        """Take out what is on trial, so that the model is a plain module again but for fossils kept as branches."""
        if self.pending is not None:
            self.pending.forget()
            self.pending = None
        self.executor.abandon(self.optimizer, self.steps_done(), "the model was unwrapped")
        for site in self.executor.sites.values():
            # a step that was to be sampled is not any more
            if grafts_of(site.module):
                install(site.module)
            else:
                restore(site.module)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of a wrapped model is not wrapped: its grafts compute, and nobody moves them."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class SiteHandle:
    """One site of a wrapped model."""

    def __init__(self, owner: ModelHandle, name: str) -> None:
        self._owner = owner
        self._seeds = owner.executor.table.of_site(name)
        self.name = name

    @property
    def site(self) -> Site:
        """The layer and what it offers a graft. Raises PreconditionFailed before it is proved."""
        self._owner.prove()
        return self._owner.executor.sites[self.name]

    @property
    def num_seeds(self) -> int:
        return len(self._seeds)

    @property
    def state_layout(self) -> StateLayout:
        """This site's rows of the seed table: device tensors [num_seeds]."""
        first = self._seeds[0].index
        return self._owner.executor.table.layout[first : first + len(self._seeds)]

    async def load_kernel(self, seed_idx: int, artifact_id: str) -> bool:
        """Fetch, verify, build and warm up a kernel for a DORMANT seed, which is TRAINING afterwards.

        The host does not change. False if the kernel cannot run here: the seed is CULLED
        and its `reason` says why.
        """
        executor, seed, site = self._owner.executor, self._seed(seed_idx), self.site
        if self._owner.kernels is None:
            raise PreconditionFailed("no library is at hand to load kernels from; call esper.attach(handle, ...) first")
        step = self._owner.steps_done
        executor.germinate([Assignment(seed, artifact_id)], "manual", step(), "by hand")
        failure, kernel = "", None
        try:
            kernel = await self._owner.kernels.kernel(artifact_id, site)
        except asyncio.CancelledError:
            if executor.table[seed].state is State.LOADING and executor.table[seed].artifact_id == artifact_id:
                executor.cancel(seed, step(), "loading was cancelled")
            raise
        except Exception as error:  # whatever went wrong, the seed says so and the host is as it was
            failure = str(error) or type(error).__name__
        record = executor.table[seed]
        if record.state is not State.LOADING or record.artifact_id != artifact_id:
            return False  # unloaded while its kernel was on the way
        if kernel is None:
            executor.load_failed(seed, failure, step())
        else:
            executor.loaded(seed, kernel, step())
        return executor.table[seed].state is State.TRAINING

    def unload_kernel(self, seed_idx: int) -> None:
        """Remove a seed wherever it stands: before the host it is cancelled, in the host it is culled."""
        executor, seed, step = self._owner.executor, self._seed(seed_idx), self._owner.steps_done()
        if executor.table[seed].state in IN_HOST:
            executor.cull(seed, self._owner.need_optimizer(), step, "unloaded by hand")
        else:
            executor.cancel(seed, step, "unloaded by hand")

    def set_seed_alpha(self, seed_idx: int, alpha: float) -> None:
        """Set the blend factor, 0 to 1, of a seed in the host, which rests there; a TRAINING seed is inserted first."""
        executor, seed = self._owner.executor, self._seed(seed_idx)
        if not 0 <= alpha <= 1:
            raise InvalidRequest(f"alpha must be 0 to 1, got {alpha}")
        if executor.table[seed].state is State.TRAINING:
            executor.insert(seed, self._owner.need_optimizer(), self._owner.steps_done(), 0, "inserted by hand")
        executor.hold_alpha(seed, alpha)

    def get_health_signal(self) -> telemetry_pb2.HealthSignal:
        """The latest sampled reading. Raises NotFound before the first: unmeasured is not healthy."""
        if self.name not in self._owner.health:
            raise NotFound(
                f"{self.name} has not been sampled yet; readings come every few steps of an attached session"
            )
        return self._owner.health[self.name]

    def get_layer_stats(self) -> dict[str, Any]:
        """Counts and states of this site's seeds."""
        states = [seed.state for seed in self._seeds]
        return {
            "site": self.name,
            "layer_kind": self.site.layer_kind,
            "interface": str(self.site.interface),
            "num_seeds": len(states),
            "active_seeds": sum(state in LIVE for state in states),
            "fossils": states.count(State.FOSSILIZED),
            "errors": sum(seed.errors for seed in self._seeds),
            "added_parameters": sum(s.parameter_count for s in self._seeds if s.state in IN_HOST and not s.folded),
            "states": [state.name for state in states],
            "alphas": [seed.alpha for seed in self._seeds],
        }

    def _seed(self, index: int) -> SeedId:
        if not 0 <= index < len(self._seeds):
            raise InvalidRequest(f"{self.name} has seeds 0 to {len(self._seeds) - 1}, got {index}")
        return self._seeds[index].id


def _leaves(output: object) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
