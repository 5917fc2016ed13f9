"""End a run: the last verdicts, then the best validated state among those whose grafts stayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper.errors import DeadlineExceeded
from esper.kasmina.codec import read_graft
from esper.kasmina.lifecycle import BEFORE_HOST, LIVE, State
from esper.tolaria.progress import Measured
from esper.tolaria.snapshot import restore_model

if TYPE_CHECKING:
    from esper.tolaria.session import Session

LAST_ANSWERS_S = 120.0  # how long the end of a run waits for measurements under way


def end_run(session: Session) -> None:
    """Training is over, so this may wait: for measurements under way, then for the controller's last word."""
    run = session.run
    session.decide(final=True)
    if run.task is not None:
        _last_answers(session)
        session.decide(final=True)
        _controllers_last_word(session)
    _close_open_seeds(session)
    best = session.validations.best_within(_fossils(session))
    if best is not None:
        _return_to(session, best)
    session.reports.transitions()
    session.reports.goodbye()


def _last_answers(session: Session) -> None:
    try:
        session.arrivals.wait_for_jobs("measure", LAST_ANSWERS_S)
    except DeadlineExceeded:
        session.run.post_note(
            "warning", f"measurements were still under way {LAST_ANSWERS_S:g} s after the last step; they do not count"
        )


def _controllers_last_word(session: Session) -> None:
    if not session.run.deterministic:
        session.arrivals.wait_for_reply()
        session.arrivals.apply(phase=1)


def _close_open_seeds(session: Session) -> None:
    """A graft that passed its verdict once stays; anything else that is still open goes."""
    run = session.run
    executor, optimizer = run.executor, run.parts.optimizer
    for seed in executor.table.in_states((State.FINE_TUNING,)):
        executor.fossilise(seed.id, optimizer, run.step, "the run ended after its verdict, before the repetition")
    for seed in executor.table.in_states(LIVE):
        executor.cull(seed.id, optimizer, run.step, "the run ended before its verdict")
    for seed in executor.table.in_states(BEFORE_HOST):
        executor.cancel(seed.id, run.step, "the run ended before it could be inserted")
    session.adaptations.forget_gone()


def _fossils(session: Session) -> frozenset[tuple[str, int, str, int]]:
    fossils = session.run.executor.table.in_states((State.FOSSILIZED,))
    return frozenset((s.id.site, s.id.slot, s.artifact_id, s.inserted_step) for s in fossils)


def _return_to(session: Session, best: Measured) -> None:
    """Make the model the best validated one; fossils that came after it are culled late."""
    run = session.run
    executor, optimizer = run.executor, run.parts.optimizer
    specs = [read_graft(graft) for graft in best.grafts]
    present = {spec.seed for spec in specs}
    for seed in executor.table.in_states((State.FOSSILIZED,)):
        if seed.id not in present:
            reason = f"late cull: the best validated state, of step {best.step}, is from before it"
            executor.revert(seed.id, optimizer, run.step, reason)
    executor.regrow(specs, [], optimizer)
    restore_model(run.parts.model, run.read_snapshot(best.path))
    executor.settle_fossils(optimizer)
    session.returned_step = best.step
    run.post_note("info", f"the model returned is that of step {best.step}, the best validated: loss {best.loss:.4f}")
