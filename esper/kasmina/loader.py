"""Make an artifact a kernel that may run here: trusted, parsed, proved equal to its graph, warm, in its fastest form.

Nothing is drawn from torch's global generators and nothing is waited for but `fetch`:
a load may run beside a training thread without changing what that one computes.
"""

import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper.artifact.agree import difference, draw_weights
from esper.artifact.body import GRAPH, Body
from esper.artifact.bundle import Artifact, verify
from esper.artifact.contents import open_contents, open_graph
from esper.artifact.keys import TrustRoots
from esper.blueprint.interface import Interface
from esper.blueprint.ir import Graph
from esper.blueprint.lower import Lowered, lower
from esper.errors import KernelFault, ShapeMismatch
from esper.host.graft import Form, JoiningForm
from esper.kasmina.cache import MEMORY, KernelCache, Obtained
from esper.kasmina.fused import fused_form
from esper.kasmina.kernel import Kernel

# Largest difference of the compiled form's value from the body's, over the largest value.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
WARM_UP_STEPS = 3
TIMED_STEPS = 5

Profile = tuple[int, ...]  # batch, then positions: the sizes of an input but for its channels


@dataclass(frozen=True, slots=True)
class Timings:
    """What a load took, by part; `source` is where the bytes were: "memory", "disk" or "library"."""

    source: str
    fetch_ms: float = 0.0
    verify_ms: float = 0.0
    build_ms: float = 0.0
    warm_up_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        return self.fetch_ms + self.verify_ms + self.build_ms + self.warm_up_ms


_AT_HAND = Timings(MEMORY)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A kernel that is ready, and what making it so took. `chosen`: "body", "script" or "fused".

    `why_not_fused`: why the artifact's Triton kernels were no candidate; empty where they were.
    """

    kernel: Kernel
    timings: Timings
    chosen: str
    why_not_fused: str = ""


def parse(artifact: Artifact, roots: TrustRoots) -> Kernel:
    """A kernel that computes with its graph's own lowering; nothing compiled is looked at.

    Raises Corrupt, Untrusted and InvalidRequest.
    """
    body = verify(artifact, roots)
    return _kernel(artifact.artifact_id, body, open_graph(body, artifact.files[GRAPH]))


class KernelLoader:
    """Loads kernels through one cache, for one device. Any thread may ask; equal requests wait for each other."""

    def __init__(self, cache: KernelCache, device: torch.device | str = "cpu") -> None:
        self.cache = cache
        self.device = torch.device(device)
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}

    def load(self, artifact_id: str, interface: Interface, profiles: Sequence[Profile] = ()) -> Loaded:
        """The kernel, ready: verified, parsed, equal to its graph, warm for inputs of each of `profiles`.

        Raises Untrusted (not built by a known forge, or not promoted by a known evaluation engine), Corrupt,
        ShapeMismatch (it is for another interface), KernelFault (its compiled form raises, or is not
        its graph), and what the cache's `fetch` raises.
        """
        ready = self._ready(artifact_id, interface)
        if ready is not None:
            return ready
        with self._alone(artifact_id):
            if artifact_id in self.cache and (ready := self._ready(artifact_id, interface)) is not None:
                return ready  # another thread was loading it
            obtained = self.cache.obtain(artifact_id)
            _check_interface(artifact_id, obtained.body.interface, interface)
            loaded = self._build(obtained, profiles)
            self.cache.keep(loaded.kernel, obtained.artifact.size_bytes)
            return loaded

    def _ready(self, artifact_id: str, interface: Interface) -> Loaded | None:
        kernel = self.cache.ready(artifact_id)
        if kernel is None:
            return None
        _check_interface(artifact_id, kernel.interface, interface)
        return Loaded(kernel, _AT_HAND, kernel.chosen)

    def _build(self, obtained: Obtained, profiles: Sequence[Profile]) -> Loaded:
        began = time.perf_counter()
        contents = open_contents(obtained.body, obtained.artifact.files)
        body = lower(contents.graph, contents.body.interface).to(self.device)
        weights = [w.to(self.device) for w in draw_weights(body, torch.Generator().manual_seed(0))]
        profiles = profiles or default_profiles(body.interface)
        inputs = [_input(body.interface, profile, self.device) for profile in profiles]
        forms: dict[str, Form] = {"script": contents.form}
        fused, why_not_fused = fused_form(contents, obtained.artifact.files, self.device)
        if fused is not None:
            forms["fused"] = fused
        for form in forms.values():
            _check_equal(form, body, weights, inputs[0])
        if fused is not None:
            _check_joined(fused, body, weights, inputs[0])
        built = time.perf_counter()
        chosen = _fastest(forms, body, weights, inputs)
        timings = Timings(
            source=obtained.source,
            fetch_ms=obtained.fetch_ms,
            verify_ms=obtained.verify_ms,
            build_ms=(built - began) * 1e3,
            warm_up_ms=(time.perf_counter() - built) * 1e3,
        )
        kernel = _kernel(obtained.artifact.artifact_id, contents.body, contents.graph)
        return Loaded(replace(kernel, form=forms.get(chosen), chosen=chosen), timings, chosen, why_not_fused)

    @contextmanager
    def _alone(self, artifact_id: str) -> Iterator[None]:
        """One load of an artifact at a time; others are not held up."""
        with self._lock:
            one = self._loading.setdefault(artifact_id, threading.Lock())
        with one:
            try:
                yield
            finally:
                with self._lock:
                    self._loading.pop(artifact_id, None)


def default_profiles(interface: Interface) -> tuple[Profile, ...]:
    """What a kernel is warmed up with where nobody says what it will be given."""
    return {0: ((32,),), 1: ((8, 32),), 2: ((8, 8, 8),)}[interface.kind.position_dims]


def _kernel(artifact_id: str, body: Body, graph: Graph) -> Kernel:
    return Kernel(artifact_id=artifact_id, blueprint_id=body.blueprint_id, graph=graph, interface=body.interface)


def _check_interface(artifact_id: str, made_for: Interface, wanted: Interface) -> None:
    if made_for != wanted:
        raise ShapeMismatch(
            f"kernel {artifact_id} was compiled for {made_for}, and {wanted} is wanted; "
            "search for kernels of that interface"
        )


def _check_equal(form: Form, body: Lowered, weights: Sequence[Tensor], h: Tensor) -> None:
    """Raises KernelFault unless the compiled form gives what the graph's lowering gives, on one input."""
    _check_same(form, lambda h, *p: body.functional(p, h), body.interface, weights, h)


def _check_joined(form: JoiningForm, body: Lowered, weights: Sequence[Tensor], h: Tensor) -> None:
    """As `_check_equal`, of what a form joins to its host by itself, both ways; where it joins nothing, of nothing."""
    alpha = torch.full((), 0.25, device=h.device)
    if not form.joins(h, alpha):
        return

    def residual(h: Tensor, *parameters: Tensor) -> Tensor:
        return torch.addcmul(h.float(), body.functional(parameters, h).float(), alpha)

    def convex(h: Tensor, *parameters: Tensor) -> Tensor:
        return torch.lerp(h.float(), body.functional(parameters, h).float(), alpha)

    _check_same(lambda h, *p: form.joined(h, alpha, *p, convex=False), residual, body.interface, weights, h)
    _check_same(lambda h, *p: form.joined(h, alpha, *p, convex=True), convex, body.interface, weights, h)


def _check_same(form: Form, reference: Form, interface: Interface, weights: Sequence[Tensor], h: Tensor) -> None:
    try:
        with torch.no_grad():
            seen = difference(form(h, *weights).double(), reference(h, *weights).double())
    except Exception as error:  # a form may raise whatever it likes; it is refused
        raise KernelFault(f"the compiled form raised {type(error).__name__} on {list(h.shape)}: {error}") from error
    limit = TOLERANCE[interface.dtype]
    if not seen <= limit:
        raise KernelFault(
            f"the compiled form differs from its graph by {seen:.3g} of the largest value on {list(h.shape)}, "
            f"limit {limit:g}; evaluate the kernel again with this torch ({torch.__version__})"
        )


def _fastest(forms: Mapping[str, Form], body: Lowered, weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> str:
    """Take every step that must be warm, then time all in turns; equal times go to the body, which is simpler."""
    calls: dict[str, Form] = {"body": lambda h, *p: body.functional(p, h), **forms}
    total_s = dict.fromkeys(calls, 0.0)
    for h in inputs:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in (h, *weights)]
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for step in range(WARM_UP_STEPS + TIMED_STEPS):
            for name, call in calls.items():
                seconds = _step_s(call, leaves)
                if step >= WARM_UP_STEPS:
                    taken[name].append(seconds)
        for name, listed in taken.items():
            total_s[name] += statistics.median(listed)
    return min(total_s, key=lambda name: total_s[name])


def _step_s(call: Form, leaves: list[Tensor]) -> float:
    """Seconds of one forward and backward."""
    wait = torch.cuda.synchronize if leaves[0].is_cuda else _nothing_to_wait_for
    wait()
    began = time.perf_counter()
    try:
        torch.autograd.grad(call(*leaves).sum(), leaves)
    except Exception as error:  # a form may raise whatever it likes; it is refused
        shape = list(leaves[0].shape)
        raise KernelFault(f"a step on {shape} raised {type(error).__name__}: {error}") from error
    wait()
    return time.perf_counter() - began


def _nothing_to_wait_for() -> None:
    """A CPU has done its work when the call returns."""


def _input(interface: Interface, profile: Profile, device: torch.device) -> Tensor:
    batch, *positions = profile
    return interface.example(batch, *positions, generator=torch.Generator().manual_seed(0), device=device)
