"""The terminal: a screen, or lines, from recorded events; and the result at the end."""

import io
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from esper.api.nissa.v1 import observability_pb2 as pb
from esper.nissa.live import Live, advance
from esper.runtime import view
from esper.runtime.view import alpha_bar, lines, render, render_result, watch
from tests.nissa.feed import recorded
from tests.nissa.scenario import hello, moved, progress, seed, summary
from tests.nissa.strategies import events


def console(width=120, terminal=False):
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None, height=60)


def shown(renderable, width=120):
    screen = console(width)
    screen.print(renderable)
    return screen.file.getvalue()


def after(made):
    state = Live()
    for event in made:
        state = advance(state, event)
    return state


def until(kind, number=1):
    """The scenario up to the n-th event of a kind."""
    found = []
    for event in recorded():
        found.append(event)
        number -= event.WhichOneof("event") == kind
        if not number:
            return found
    raise AssertionError(kind)


async def stream(made):
    for event in made:
        yield event


def test_the_header_has_run_progress_losses_and_speed():
    text = shown(render(after(recorded())))
    assert "run-1  digits  heuristic, seed 7" in text
    assert "step 1,000 / 1,000" in text
    assert "loss 0.65" in text and "held out 0.62 at 900 (never grown 0.8 at 500)" in text
    assert "2,000 steps/s" in text and "1,000 parameters" in text and "stalled_steps=0" in text
    assert "queues: 2 compile, 1 evaluate, 3 nursery" in text


def test_seeds_have_state_alpha_and_blueprint():
    text = shown(render(after(until("progress", 2))))
    assert "fc1 (Linear)" in text and "grafting" in text and "bottleneck 4" in text
    assert "█████░░░░░ 0.50" in text
    over = shown(render(after(recorded())))
    assert "fossilized" in over and "██████████ 1.00" in over


def test_layers_that_sleep_take_one_line_each():
    text = shown(render(after([pb.RunEvent(hello=hello())])))
    asleep = [line.replace("│", " ").split() for line in text.splitlines() if "dormant" in line]
    assert asleep == [["fc1", "(Linear)", "2", "dormant"], ["conv", "(Conv2d)", "1", "dormant"]]


def test_more_seeds_than_fit_are_counted_and_the_busy_ones_come_first(monkeypatch):
    monkeypatch.setattr(view, "MAX_ROWS", 3)
    made = [pb.RunEvent(transition=moved("DORMANT", "GERMINATED", 5, seed(f"a{i}"))) for i in range(5)]
    made += [pb.RunEvent(transition=moved("GERMINATED", "CANCELLED", 6, seed(f"a{i}"))) for i in range(4)]
    text = shown(render(after(made)))
    assert "2 more seeds" in text
    assert text.index("a4") < text.index("a0")


def test_decisions_and_notes_are_there_with_reasons():
    text = shown(render(after(recorded())), width=160)
    assert "loss has not fallen for 200 steps" in text
    assert "keep fc1/0 (+3.10 % ± 0.60 %): gain above 1 %" in text
    assert "a <b>bold</b> note & more" in text
    assert "manual-1: fc1/0 is FOSSILIZED" in text


def test_nothing_heard_yet_is_a_screen_too():
    text = shown(render(Live()))
    assert "waiting for a run" in text and "loss -" in text and "stalled_steps=-" in text


def test_words_from_outside_are_no_markup():
    made = [
        pb.RunEvent(hello=hello(task_name="[bold]x[/bold]")),
        pb.RunEvent(note={"level": "info", "text": "[red]danger[/red] [/nothing]"}),
    ]
    text = shown(render(after(made)))
    assert "[bold]x[/bold]" in text and "[red]danger[/red] [/nothing]" in text
    assert "[x]" in shown(render_result(after([pb.RunEvent(hello=hello("[x]"))])))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width):
    for line in shown(render(after(recorded())), width).splitlines():
        assert len(line) <= width


def test_the_result_has_every_arm_and_the_stalled_steps():
    text = shown(render_result(after(recorded())))
    assert "run run-1: completed" in text
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 3}
    assert all(words in rows["grown"] for words in ("0.41", "0.9100", "1,064", "3 TFLOP", "900"))
    assert "0.8900" in rows["never-grown"] and "1.1 TFLOP" in rows["static-final"]
    assert "1 fossilised, 1 culled; training 1 TFLOP, nursery and twins 2 TFLOP" in text
    assert text.rstrip().endswith("stalled_steps=0")


def test_controls_that_were_not_trained_are_not_measured():
    made = summary()
    del made.arms[1:]
    text = shown(render_result(after([pb.RunEvent(summary=made)])))
    assert text.count("not measured") == 10


def test_a_run_without_summary_says_so():
    text = shown(render_result(after([pb.RunEvent(goodbye={"step": 5, "error": "ValueError: no"})])))
    assert "ended by an error: ValueError: no" in text
    assert "nothing was compared" in text and "stalled_steps=unknown" in text


def test_a_run_that_was_stopped_says_where_and_of_how_many_steps():
    made = [pb.RunEvent(hello={"run_id": "r", "total_steps": 400}), pb.RunEvent(goodbye={"step": 120, "stopped": True})]
    assert "run r: stopped at step 120 of 400; it can be resumed" in shown(render_result(after(made)))
    assert spoken(made)[-1] == "step 120: stopped at step 120 of 400; it can be resumed"


def spoken(made, every_steps=100):
    state, found = Live(), []
    for event in made:
        found += lines(state, event, every_steps)
        state = advance(state, event)
    return found


def test_lines_are_one_for_each_thing_that_happens():
    found = spoken(recorded())
    assert found[0] == "run run-1: task digits, policy heuristic, 1000 steps"
    assert "step 200: ADD_SEED loss has not fallen for 200 steps" in found
    assert "step 230: fc1/0 TRAINING > GRAFTING: to GRAFTING" in found
    assert "step 400: MODIFY keep fc1/0 (+3.10 % ± 0.60 %): gain above 1 %" in found
    assert "step 900: held-out loss 0.62 (run)" in found
    assert "step 500: held-out loss 0.8 (never-grown)" in found
    assert "step 530: rolled back to step 505: loss is NaN" in found
    assert "step 730: refused manual-1: fc1/0 is FOSSILIZED" in found
    assert found[-3] == "step 1000: completed"
    assert not [line for line in found if "cooldown" in line]


def test_progress_is_told_every_so_often():
    made = [pb.RunEvent(progress=progress(step)) for step in range(10, 1001, 10)]
    assert spoken(made, 250) == [f"step {step}: loss 1" for step in (250, 500, 750, 1000)]
    made = [pb.RunEvent(validation={"step": step, "loss": 1, "arm": "run"}) for step in (50, 100, 250)]
    assert spoken(made, 250) == ["step 250: held-out loss 1 (run)"]


async def test_without_a_terminal_lines_are_printed_then_the_result():
    screen = console()
    state = await watch(stream(recorded()), console=screen)
    text = screen.file.getvalue()
    assert "\x1b" not in text
    assert text.startswith("run run-1: task digits")
    assert text.rstrip().endswith("stalled_steps=0")
    assert state == after(recorded())


async def test_on_a_terminal_a_screen_is_drawn_then_the_result():
    screen = console(terminal=True)
    await watch(stream(recorded()), console=screen)
    text = screen.file.getvalue()
    assert "\x1b" in text and "queues: 2 compile" in text
    assert text.rstrip().endswith("stalled_steps=0")


async def test_a_terminal_can_be_overruled():
    screen = console(terminal=True)
    await watch(stream(recorded()), console=screen, live=False)
    assert screen.file.getvalue().startswith("run run-1: task digits")


async def test_many_events_are_few_frames():
    drawn, now = [], 0.0

    def clock():
        nonlocal now
        now += 0.001
        return now

    screen = console(terminal=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "render", lambda state: drawn.append(state) or "x")
        await watch(stream([pb.RunEvent(progress=progress(step)) for step in range(2000)]), console=screen, clock=clock)
    assert 10 < len(drawn) < 40
    assert drawn[-1].step == 1999


async def test_an_error_of_the_stream_ends_the_screen_and_is_raised():
    async def broken():
        yield recorded()[0]
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await watch(broken(), console=console(terminal=True))


@pytest.mark.parametrize(
    ("alpha", "bar"),
    [(0.0, "░░░░░░░░░░ 0.00"), (1.0, "██████████ 1.00"), (1.5, "██████████ 1.50"), (-1.0, "░░░░░░░░░░ -1.00")],
)
def test_alpha_is_a_bar(alpha, bar):
    assert alpha_bar(alpha) == bar


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None, max_examples=60)
@given(st.lists(events(), max_size=5))
def test_any_events_can_be_shown(made):
    state = after(made)
    shown(render(state))
    shown(render_result(state))
    spoken(made)


def test_watching_needs_no_torch():
    program = (
        "import sys, esper; before = set(sys.modules); import esper.runtime.view; print(set(sys.modules) - before)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = ran.stdout
    for name in ("'torch'", "'matplotlib'", "'grpc'", "'sqlalchemy'"):
        assert name not in loaded
