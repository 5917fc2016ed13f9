"""Keep the replicas of a data-parallel run equal.

Every rank runs the whole session, and the first one alone talks to the runtime. The replicas stay equal because all
ranks begin with the same parameters, average every gradient, see the same arrivals at the same decision points, and
act on the same losses and the same faults.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from esper.host.graft import Graft
from esper.host.newborns import NewbornGradients
from esper.kasmina.lifecycle import SeedId
from esper.kasmina.regrow import device_of
from esper.tolaria.run import Run


class Vote:
    """A step's loss and faults, averaged over the ranks while the next step runs. `float(vote)`: the mean loss."""

    def __init__(self, values: Tensor, work: "dist.Work", seeds: list[SeedId], texts: dict[SeedId, str]) -> None:
        self._values = values
        self._work = work
        self._seeds = seeds
        self._texts = texts
        self._read: list[float] = []

    def __float__(self) -> float:
        return self._result()[0]

    def faults(self) -> dict[SeedId, str]:
        """Seeds whose kernel failed on some rank, and what happened where that was this one."""
        return {
            seed: self._texts.get(seed, "failed on another rank")
            for seed, share in zip(self._seeds, self._result()[1:], strict=True)
            if share > 0
        }

    def _result(self) -> list[float]:
        if not self._read:
            self._work.wait()
            self._read = self._values.tolist()
        return self._read


class Replicas:
    """What a session of several ranks does besides: collective all of it, so every rank calls it at the same steps."""

    def __init__(self, run: Run) -> None:
        assert run.ranks is not None
        self._run = run
        self._ranks = run.ranks
        self._late: Vote | None = None
        self._resumed: dict[SeedId, str] = {}  # what the late vote of a checkpoint found
        self._ranks.make_equal(run.parts.model)
        self._gradients = NewbornGradients(run.parts.model, self._grafts, self._ranks.mean)

    def vote(self, loss: Tensor | float) -> Vote:
        """Begin a step's vote. Faults of grafts are from now on those that the last step's vote found.

        No rank acts on its own loss or its own faults: all act on everybody's, one step late.
        """
        grafts = self._run.executor.grafts
        texts = {seed: graft.fault for seed, graft in grafts.items() if graft.fault}
        found, self._resumed = self.late_faults(), {}
        for seed, graft in grafts.items():
            graft.fault = found.get(seed, "")
        seeds = sorted(grafts, key=str)
        device = device_of(self._run.parts.model)
        values = torch.tensor([0.0, *(float(seed in texts) for seed in seeds)], device=device)
        values[0] = loss.detach() if isinstance(loss, Tensor) else loss
        self._late = Vote(values, self._ranks.begin_mean(values), seeds, texts)
        return self._late

    def late_faults(self) -> dict[SeedId, str]:
        """What the vote of the last step found, which has not acted yet. Waits for it."""
        return self._late.faults() if self._late is not None else dict(self._resumed)

    def resume(self, late_faults: dict[SeedId, str]) -> None:
        """Begin again with what a checkpoint has of `late_faults`, the same on all ranks."""
        self._late, self._resumed = None, late_faults

    def forget_late(self) -> None:
        """After a rollback: the vote that is still late belongs to a step that was undone."""
        self._late, self._resumed = None, {}

    def check(self) -> None:
        """At a decision point, before anything changes: raise Conflict on all ranks where they are not alike."""
        run = self._run
        rates = [float(group["lr"]) for group in run.parts.optimizer.param_groups]
        seeds = (s for s in run.executor.table if s.artifact_id)
        self._ranks.check_same(
            {
                "the step": str(run.step),
                "the list of learning rates": str(rates),
                "the state of the seeds": ", ".join(f"{s.id} {s.state.name} alpha {s.alpha:g}" for s in seeds)
                or "none",
                "what waits": f"{run.loading} kernels, jobs {sorted(run.outstanding)}",
            }
        )

    def close(self) -> None:
        """Stop averaging; the model is as it was."""
        self._gradients.remove()

    def _grafts(self) -> list[Graft]:
        """Those in the host, in an order that does not depend on how they came there."""
        grafts = self._run.executor.grafts
        return [grafts[seed] for seed in sorted(grafts, key=str)]
