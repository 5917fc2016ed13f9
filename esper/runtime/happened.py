"""What happened in a run, and why: its decisions, the fates of its seeds, rollbacks, notes. Read from events.jsonl."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
MOST_LINES = 200  # the latest of a long run
_FATES = ("GRAFTING", "FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK")
_NOTHING = "NONE"  # the decision to change nothing

Event = Mapping[str, Any]


@dataclass(slots=True)
class Happened:
    """`lines`: in the order of the record. `total_steps`: as the run was started for, 0 where that is not recorded."""

    lines: list[str] = field(default_factory=list)
    total_steps: int = 0


def read_happened(folder: Path) -> Happened:
    """What a run's folder has of it; one line says so where there is no record, or a line of it is damaged."""
    path = folder / EVENTS
    if not path.exists():
        return Happened([f"decisions   none recorded: there is no {EVENTS}"])
    with path.open(encoding="utf-8", errors="replace") as lines:
        events, damaged = _parse(lines)
    happened = happened_in(events)
    left_out = len(happened.lines) - MOST_LINES
    if left_out > 0:
        happened.lines[:left_out] = [f"decisions   {left_out} earlier lines are left out; {EVENTS} has them all"]
    if damaged:
        happened.lines.append(f"events      {damaged} lines of {EVENTS} do not parse and are left out")
    return happened


def happened_in(events: Iterable[Event]) -> Happened:
    """The story of a run's events. Decisions to change nothing that follow each other are one line."""
    happened = Happened()
    idle: list[Event] = []
    for event in events:
        if event["kind"] == "hello":
            happened.total_steps = int(event.get("total_steps") or 0)
        if event["kind"] == "decision" and event.get("decision") == _NOTHING:
            idle.append(event)
            continue
        said = list(_lines(event))
        if said:
            happened.lines += _idle(idle) + said
            idle.clear()
    happened.lines += _idle(idle)
    return happened


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
