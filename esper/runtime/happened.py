"""What happened in a run, and why: its decisions, the fates of its seeds, rollbacks, notes. Read from events.jsonl."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from esper.runtime.stored import EVENTS

MOST_LINES = 200  # the latest of a long run
_FATES = ("GRAFTING", "FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK")
_NOTHING = "NONE"  # the decision to change nothing

Event = Mapping[str, Any]


def read_happened(folder: Path) -> list[str]:
    """What a run's folder has of it; one line says so where there is no record, or a line of it is damaged."""
    path = folder / EVENTS
    if not path.exists():
        return [f"decisions   none recorded: there is no {EVENTS}"]
    with path.open(encoding="utf-8", errors="replace") as lines:
        events, damaged = _parse(lines)
    told = happened_in(events)
    left_out = len(told) - MOST_LINES
    if left_out > 0:
        told[:left_out] = [f"decisions   {left_out} earlier lines are left out; {EVENTS} has them all"]
    if damaged:
        told.append(f"events      {damaged} lines of {EVENTS} do not parse and are left out")
    return told


def happened_in(events: Iterable[Event]) -> list[str]:
    """The story of a run's events, in their order. Decisions to change nothing that follow each other are one line."""
    told = list[str]()
    idle: list[Event] = []
    for event in events:
        if event["kind"] == "decision" and event.get("decision") == _NOTHING:
            idle.append(event)
            continue
        said = list(_lines(event))
        if said:
            told += _idle(idle) + said
            idle.clear()
    return told + _idle(idle)


def _parse(lines: Iterable[str]) -> tuple[list[Event], int]:
    """Events, and how many lines are none. A last line without its end is being written and is not counted."""
    events: list[Event] = []
    damaged = 0
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            damaged += line.endswith("\n")
            continue
        if isinstance(event, dict) and "kind" in event:
            events.append(event)
        else:
            damaged += 1
    return events, damaged


def _idle(decisions: list[Event]) -> list[str]:
    if not decisions:
        return []
    first, last = decisions[0], decisions[-1]
    same = first.get("step") == last.get("step")
    when = _step(last) if same else f"steps {first.get('step')} to {last.get('step')}:"
    times = f", {len(decisions)} times; the last" if len(decisions) > 1 else ""
    return [f"decision    {when} nothing{times}: {last.get('reason')}"]


def _lines(event: Event) -> Iterator[str]:
    kind, step, why = event["kind"], _step(event), event.get("reason")
    if kind == "decision":
        yield f"decision    {step} {event.get('decision')}: {why} ({event.get('decision_id')})"
    elif kind == "transition" and event.get("to") in _FATES:
        yield f"seed        {step} {event.get('seed')} {event.get('from')} -> {event.get('to')}: {why}"
    elif kind == "rollback":
        locked = ", ".join(event.get("locked_seeds") or []) or "none"
        yield f"rollback    {step} back to step {event.get('restored_step')}, seeds locked: {locked}: {why}"
    elif kind == "outcome" and not event.get("applied"):
        yield f"refused     {step} command {event.get('command_id')}: {event.get('detail')}"
    elif kind == "note":
        yield f"note        {step} {event.get('level')}: {event.get('text')}"
    elif kind == "goodbye" and event.get("error"):
        yield f"ended       {step} by an error: {event['error']}"


def _step(event: Event) -> str:
    return f"step {event.get('step')}:"
