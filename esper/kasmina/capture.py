"""Run a training step as a CUDA graph, captured again when what it launches has changed.

A graph repeats the launches of one step on the memory of that step. A ramp writes alphas on
the device and changes neither, so that it needs no new graph; a seed that enters, leaves or
settles, another form of a kernel, another device, dtype or shape does.

    step = capture(train_step, handle.executor)   # train_step(x, y): zero_grad, forward, backward, optimizer.step
    for x, y in batches:
        loss = step(x, y)

Every call is exactly one step on its own inputs. After a change the next `warmups` calls run
as they are, which lets kernels compile and the optimiser make its state; the one after them
is captured, off the memory of the run, and replayed.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from esper.errors import InvalidRequest, Unavailable
from esper.kasmina.executor import Executor

WARMUPS = 3  # torch's own examples warm up three times


class Move(enum.Enum):
    RUN = "run"  # the step as it is
    CAPTURE = "capture"  # record a graph, then replay it
    REPLAY = "replay"


@dataclass(frozen=True, slots=True)
class Picture:
    """What a captured step depends on. Objects are kept, and compared by identity: an address may be used again."""

    grafts: tuple[tuple[object, ...], ...]  # graft, form, settled of each
    alphas: int  # address of the seed table's blend factors
    tensors: tuple[tuple[object, ...], ...]  # address, shape, dtype, device, requires_grad of each of the model's
    inputs: tuple[tuple[object, ...], ...]  # shape, dtype, device
    training: bool


def picture(executor: Executor, inputs: Sequence[Tensor]) -> Picture:
    """What a step on `inputs` would launch kernels for and on, read without a look at the device's values."""
    model = executor.model
    return Picture(
        tuple((graft, graft.form, graft.settled) for graft in executor.grafts.values()),
        executor.table.layout.alpha_blend.data_ptr(),
        tuple(
            (t.data_ptr(), t.shape, t.dtype, t.device, t.requires_grad)
            for tensors in (model.parameters(), model.buffers())
            for t in tensors
        ),
        tuple((t.shape, t.dtype, t.device) for t in inputs),
        model.training,
    )


def what_changed(before: Picture | None, now: Picture) -> str:
    """Why a step captured at `before` no longer does what a step would do `now`; empty where it does."""
    if before is None:
        return "nothing is captured yet"
    if not _same(before.grafts, now.grafts):
        return "seeds entered, left or settled, or a kernel's form was swapped"
    changes = {
        "the seed table is in other memory": before.alphas != now.alphas,
        "the model's tensors are others, or elsewhere, or learn now or no longer": before.tensors != now.tensors,
        f"inputs are {_said(now)} and were {_said(before)}": before.inputs != now.inputs,
        "the model changed between training and evaluation": before.training != now.training,
    }
    return next((reason for reason, changed in changes.items() if changed), "")


def _same(before: tuple[tuple[object, ...], ...], now: tuple[tuple[object, ...], ...]) -> bool:
    pairs = [
        len(before) == len(now),
        *(a is b for x, y in zip(before, now, strict=False) for a, b in zip(x, y, strict=True)),
    ]
    return all(pairs)


def _said(at: Picture) -> list[str]:
    return [f"{dtype}{list(shape)} on {device}" for shape, dtype, device in at.inputs]  # type: ignore[call-overload]


@dataclass(slots=True)
class Plan:
    """What each call of a captured step does. Pure but for what it remembers."""

    warmups: int = WARMUPS
    seen: Picture | None = None  # what the warm-up, and then the graph, is for
    left: int = 0  # steps of the warm-up still to run
    captures: int = 0
    reason: str = ""  # why the latest warm-up began

    def next(self, now: Picture) -> Move:
        """What the call that sees `now` does."""
        if changed := what_changed(self.seen, now):
            self.seen, self.left, self.reason = now, self.warmups + 1, changed
        if not self.left:
            return Move.REPLAY
        self.left -= 1
        if self.left:
            return Move.RUN
        self.captures += 1
        return Move.CAPTURE

    def forget(self) -> None:
        """Begin again with a warm-up."""
        self.seen = None


class CapturedStep:
    """What `capture` returns: call it as the step. `plan.captures` counts graphs, `plan.reason` says why the latest."""

    def __init__(self, step: Callable[..., Any], executor: Executor, plan: Plan) -> None:
        self.step, self.executor, self.plan = step, executor, plan
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """One step. Tensors in what it returns are overwritten by the next call."""
        check_inputs(inputs)
        move = self.plan.next(picture(self.executor, inputs))
        if move is Move.RUN:
            self._graph = self._outputs = None  # its memory goes back before the step needs some
            return self._run(inputs)
        if move is Move.CAPTURE:
            self._capture(inputs)
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def _run(self, inputs: Sequence[Tensor]) -> Any:
        """On the stream that the capture will be on, where autograd and the allocator warm up."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            made = self.step(*inputs)
        current.wait_stream(self._stream)
        for leaf in _pytree.tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.is_cuda:
                leaf.record_stream(current)
        return made

    def _capture(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = [given.detach().clone() for given in inputs]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._outputs = self.step(*self._inputs)
        except BaseException:
            self.plan.forget()
            raise
        self._graph = graph


def capture(step: Callable[..., Any], executor: Executor, *, warmups: int = WARMUPS) -> CapturedStep:
    """Run `step(*tensors)` as a CUDA graph that follows what grows in `executor`'s model.

    `step` does a whole training step and reads nothing from the device: no `.item()`, and an optimiser
    made with `capturable=True` where it counts steps. Its inputs keep their shapes; each change of one
    costs a warm-up and a capture.

    Raises Unavailable where torch sees no CUDA device or the model is not on one, InvalidRequest for `warmups` under 1.
    """
    if warmups < 1:
        raise InvalidRequest(f"warmups is {warmups}; at least one step must run before a capture")
    device = executor.table.layout.alpha_blend.device
    if not torch.cuda.is_available():
        raise Unavailable("a step is captured on a CUDA device, and torch sees none; call the step itself here")
    if device.type != "cuda":
        raise Unavailable(
            f"a step is captured on a CUDA device, and the model is on {device}; move it, or call the step itself"
        )
    return CapturedStep(step, executor, Plan(warmups))


def check_inputs(inputs: Sequence[object]) -> None:
    """Raises InvalidRequest for what a graph cannot be handed anew: it would repeat the first call's."""
    for index, given in enumerate(inputs):
        if not isinstance(given, Tensor):
            kind = type(given).__name__
            raise InvalidRequest(
                f"input {index} of a captured step is a {kind}; pass tensors, and keep the rest in the step"
            )
