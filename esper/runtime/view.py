"""A run as it is watched in a terminal: a live screen, or plain lines where there is no terminal.

What is shown is a pure function of the state that `esper.nissa.live` folds from events.
"""

import math
import time
from collections.abc import AsyncIterator, Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live as Screen
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.api.tamiyo.v1.controller_pb2 import DECISION_KIND_NONE
from esper.nissa.codec import decision_name, ending, seed_name, source_of, state_name
from esper.nissa.live import Line, Live, advance, decision_text
from esper.nissa.page import ARMS, number, scaled
from esper.nissa.seeds import CULLED, DORMANT, FOSSILIZED

# Times a second the screen is drawn at most.
FRAMES_PER_S = 8.0
MAX_ROWS = 24
BAR_CELLS = 10
_STYLES = {DORMANT: "dim", 5: "yellow", 6: "yellow", 7: "dark_orange", 8: "magenta", FOSSILIZED: "green", CULLED: "red"}


async def watch(
    events: AsyncIterator[pb.RunEvent],
    *,
    console: Console | None = None,
    live: bool | None = None,
    every_steps: int = 100,
    clock: Callable[[], float] = time.monotonic,
) -> Live:
    """Show a run until its events end, then its result; returns its last state.

    `live`: True draws a screen, False prints lines, None asks the console whether it is a
    terminal. `every_steps`: between two lines about progress.
    """
    console = console or Console()
    on_screen = console.is_terminal if live is None else live
    follow = _follow_on_screen(events, console, clock) if on_screen else _follow_in_lines(events, console, every_steps)
    state = await follow
    console.print(render_result(state))
    return state


async def _follow_on_screen(events: AsyncIterator[pb.RunEvent], console: Console, clock: Callable[[], float]) -> Live:
    state, drawn = Live(), -math.inf
    with Screen(render(state), console=console, auto_refresh=False, vertical_overflow="crop") as screen:
        async for event in events:
            state = advance(state, event)
            if clock() - drawn >= 1 / FRAMES_PER_S:
                drawn = clock()
                screen.update(render(state), refresh=True)
        screen.update(render(state), refresh=True)
    return state


async def _follow_in_lines(events: AsyncIterator[pb.RunEvent], console: Console, every_steps: int) -> Live:
    state = Live()
    async for event in events:
        before, state = state, advance(state, event)
        for line in lines(before, event, every_steps):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return state


def lines(before: Live, event: pb.RunEvent, every_steps: int) -> Iterator[str]:
    """What is printed of an event: decisions that change something, moves, losses every so often, notes."""
    match event.WhichOneof("event"):
        case "hello":
            said = event.hello
            yield f"run {said.run_id}: task {said.task_name}, policy {said.settings.policy}, {said.total_steps} steps"
        case "progress" if event.progress.step // every_steps > before.step // every_steps:
            yield f"step {event.progress.step}: loss {number(event.progress.train_loss)}"
        case "validation":
            measured = event.validation
            if measured.arm != "run" or measured.step % every_steps == 0:
                yield f"step {measured.step}: held-out loss {number(measured.loss)} ({measured.arm})"
        case "transition":
            moved = event.transition
            names = f"{state_name(source_of(moved))} > {state_name(moved.to)}"
            yield f"step {moved.step}: {seed_name(moved.seed)} {names}: {moved.reason}"
        case "decision" if event.decision.kind != DECISION_KIND_NONE:
            decision = event.decision
            yield f"step {decision.step}: {decision_name(decision.kind)} {decision_text(decision)}"
        case "rollback":
            back = event.rollback
            yield f"step {back.step}: rolled back to step {back.restored_step}: {back.reason}"
        case "outcome" if not event.outcome.applied:
            yield f"step {event.outcome.step}: refused {event.outcome.command_id}: {event.outcome.detail}"
        case "note":
            yield f"{event.note.level}: {event.note.text}"
        case "goodbye":
            yield f"step {event.goodbye.step}: {ending(event.goodbye, before.total_steps)}"


def render(state: Live) -> RenderableType:
    """The whole screen."""
    parts: list[RenderableType] = [_header(state), _seeds(state)]
    if state.decisions:
        parts.append(_lines("decisions", state.decisions))
    if state.notes:
        parts.append(_lines("notes", state.notes))
    return Group(*parts)


def render_result(state: Live) -> RenderableType:
    """What came of the run: one row per arm; what was not measured is said."""
    head = f"run {state.run_id}: " + (
        ending(state.goodbye, state.total_steps) if state.goodbye is not None else "not over"
    )
    stalled = "stalled_steps=" + ("unknown" if state.stalled_steps is None else str(state.stalled_steps))
    if state.summary is None:
        return Group(Text(head), Text("no summary of the run was heard; nothing was compared"), Text(stalled))
    summary = state.summary
    table = Table(title=escape(head), title_justify="left")
    for name in ("", "test loss", "score", "parameters", "total compute", "best step"):
        table.add_column(name, justify="left" if not name else "right")
    there = {arm.arm: arm for arm in summary.arms}
    for name in (*ARMS, *(name for name in there if name not in ARMS)):
        table.add_row(*_arm(there[name]) if name in there else (name, *["not measured"] * 5))
    costs = f"training {scaled(summary.train_flops)}, nursery and twins {scaled(summary.nursery_flops)}"
    ends = f"{summary.fossilised} fossilised, {summary.culled} culled; {costs}"
    return Group(table, Text(ends), Text(f"stalled_steps={summary.stalled_steps}"))


def _arm(arm: pb.ArmSummary) -> tuple[str, ...]:
    score = f"{arm.test_score:.4f}" if arm.HasField("test_score") else "-"
    flops = scaled(arm.total_flops)
    return (arm.arm, number(arm.test_loss), score, f"{arm.parameters:,}", flops, f"{arm.best_step:,}")


def _header(state: Live) -> RenderableType:
    seed = "" if state.random_seed is None else f", seed {state.random_seed}"
    title = f"{state.run_id or 'waiting for a run'}  {state.task}  {state.policy}{seed}"
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(ratio=1)
    row.add_column()
    steps = f"step {state.step:,}" + (f" / {state.total_steps:,}" if state.total_steps else "")
    bar = ProgressBar(total=float(state.total_steps or 1), completed=float(min(state.step, state.total_steps)))
    row.add_row(bar, steps)
    return Panel(Group(row, Text(_numbers(state))), title=escape(title), title_align="left")


def _numbers(state: Live) -> str:
    rate = f"{1e6 / state.step_us:,.0f} steps/s" if state.step_us else "- steps/s"
    parts = [f"loss {_or_dash(state.train_loss)}", _validation(state), rate]
    parts.append("- parameters" if state.parameters is None else f"{state.parameters:,} parameters")
    parts.append("stalled_steps=" + ("-" if state.stalled_steps is None else str(state.stalled_steps)))
    if state.queues is not None:
        parts.append("queues: {} compile, {} evaluate, {} nursery".format(*state.queues))
    return "   ".join(parts)


def _validation(state: Live) -> str:
    own = state.validations.get("run")
    twin = state.validations.get("never-grown")
    words = "held out -" if own is None else f"held out {number(own[1])} at {own[0]:,}"
    return words if twin is None else f"{words} (never grown {number(twin[1])} at {twin[0]:,})"


def _seeds(state: Live) -> RenderableType:
    table = Table(expand=True, pad_edge=False)
    for name, width in (("layer", None), ("seed", 4), ("state", 13), ("alpha", BAR_CELLS + 5), ("blueprint", None)):
        table.add_column(name, width=width, ratio=None if width else 1, no_wrap=True, overflow="ellipsis")
    rows = list(_rows(state))
    for row in rows[:MAX_ROWS]:
        table.add_row(*row)
    if len(rows) > MAX_ROWS:
        table.caption = f"{len(rows) - MAX_ROWS} more seeds"
    return table


def _rows(state: Live) -> Iterator[tuple[RenderableType, ...]]:
    """Seeds that are doing something, then fossils, then one row for each layer that is all dormant."""
    order = sorted((_place(state.stay(seed).state), seed) for seed in state.stays)
    shown = [seed for place, seed in order if place < 2]
    kinds = {site.name: site.layer_kind for site in state.sites}
    for seed in shown:
        site, _, slot = seed.rpartition("/")
        yield _row(state, seed, f"{site} ({kinds.get(site, '?')})", slot)
    busy = {seed.rpartition("/")[0] for seed in shown}
    for idle in (layer for layer in state.sites if layer.name not in busy):
        yield (Text(f"{idle.name} ({idle.layer_kind})"), Text(f"{idle.slots}"), Text("dormant", "dim"), "", "")


def _place(state: int) -> int:
    """0: on its way; 1: ended; 2: dormant."""
    return 2 if state == DORMANT else 1 if state >= FOSSILIZED else 0


def _row(state: Live, seed: str, layer: str, slot: str) -> tuple[RenderableType, ...]:
    stay = state.stay(seed)
    name = state_name(stay.state).lower().replace("_", " ")
    alpha = state.alphas.get(seed, 1.0 if stay.state == FOSSILIZED else None)
    bar = Text("" if alpha is None else alpha_bar(alpha))
    title = state.titles.get(seed, "") if stay.state <= FOSSILIZED else stay.reason
    return (Text(layer), Text(slot), Text(name, _STYLES.get(stay.state, "cyan")), bar, Text(title))


def alpha_bar(alpha: float) -> str:
    """A blend factor, 0 to 1, as a bar and a number."""
    full = round(min(max(alpha, 0.0), 1.0) * BAR_CELLS)
    return "█" * full + "░" * (BAR_CELLS - full) + f" {alpha:.2f}"


def _lines(title: str, shown: tuple[Line, ...]) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    for line in shown:
        again = f" (x{line.count})" if line.count > 1 else ""
        style = "red" if line.head in ("error", "rollback", "refused") else ""
        table.add_row(Text(f"{line.step:>7,}", "dim"), Text(line.head, style), Text(line.text + again))
    return Panel(table, title=title, title_align="left")


def _or_dash(value: float | None) -> str:
    return "-" if value is None else number(value)
