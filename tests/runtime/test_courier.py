"""The trainer's line: in order, each message once, nothing lost that must not be, and training never waits."""

import threading
import time
from collections.abc import Iterator

import pytest

from esper.api.common.v1 import training_pb2
from esper.api.kasmina.v1 import control_pb2, nursery_pb2
from esper.api.tolaria.v1 import trainer_pb2
from esper.blueprint.interface import Interface, Kind
from esper.errors import Conflict, DeadlineExceeded, EsperError, Exhausted, NotFound, Unauthenticated, Unavailable
from esper.kasmina.lifecycle import SeedId
from esper.runtime import courier as module
from esper.runtime.courier import Courier
from esper.tolaria.line import Loaded
from tests.runtime.lines import Host, Peer, Request, Response, acknowledge, courier_to, note, progress
from tests.runtime.processes import until

OFFERED = Interface(Kind.VECTOR, 4)
GOODBYE = lambda: Request(goodbye=trainer_pb2.Goodbye(completed=True))  # noqa: E731


@pytest.fixture
def host() -> Iterator[Host]:
    with Host(Peer()) as started:
        yield started


@pytest.fixture
def courier(host: Host) -> Iterator[Courier]:
    made = courier_to(host.address)
    made.start()
    yield made
    made.close(timeout_s=2.0)


def job(number: int) -> Request:
    work = nursery_pb2.ControlRun(task=training_pb2.TaskReference(factory="a:b"), steps=1, validate_every_steps=1)
    return Request(job=nursery_pb2.Job(job_id=f"run-1/trial/{number}", run_id="run-1", control_run=work))


def result(number: int, **fields: object) -> Response:
    return Response(result=nursery_pb2.JobResult(job_id=f"run-1/trial/{number}", run_id="run-1", **fields))


def test_everything_arrives_once_and_in_order(host, courier):
    for number in range(500):
        courier.post(note(str(number)))
    until(lambda: len(host.peer.texts()) == 500)
    assert host.peer.texts() == [str(number) for number in range(500)]
    assert host.peer.heard() == list(range(2, 502))
    assert len(host.peer.lines) == 1


def test_a_message_is_made_off_the_training_thread_and_none_is_sent_for_nothing(host, courier):
    made_by: list[str] = []

    def make() -> None:
        made_by.append(threading.current_thread().name)

    courier.post(make)
    courier.post(note("after"))
    until(host.peer.texts)
    assert made_by == ["esper-courier"]
    assert host.peer.heard() == [2]


def test_what_is_posted_together_is_made_when_all_of_it_is_there(host, courier):
    made: list[int] = []
    with courier.together():
        for number in range(3):
            courier.post(lambda number=number: made.append(number))
        time.sleep(0.2)
        assert made == []
    until(lambda: made == [0, 1, 2])


def test_waiting_in_the_midst_of_it_sends_what_is_there(host, courier):
    host.peer.answer = lambda request: [*acknowledge(request), result(1)]
    with courier.together():
        courier.post(note("first"))
        courier.wait(lambda: bool(courier.collect()), 10.0)
        courier.post(note("second"))
    until(lambda: host.peer.texts() == ["first", "second"])


def test_posting_does_not_wait_for_a_slow_message(host, courier):
    gate = threading.Event()
    courier.post(lambda: gate.wait(30) and None)
    for number in range(1000):
        courier.post(note(str(number)))
    assert host.peer.texts() == []
    gate.set()
    until(lambda: len(host.peer.texts()) == 1000)


def test_a_lost_line_is_opened_again_and_what_was_not_acknowledged_is_sent_again(host, courier):
    def forget_the_third(request: Request) -> list[Response] | None:
        if len(host.peer.lines) == 1 and request.sequence >= 4:
            return None if request.sequence == 6 else []
        return acknowledge(request)

    host.peer.answer = forget_the_third
    for number in range(8):
        courier.post(note(str(number)))
    until(lambda: len(host.peer.lines) == 2 and len(host.peer.heard()) == 6)
    assert host.peer.heard(1) == [4, 5, 6, 7, 8, 9]
    assert host.peer.texts() == [str(number) for number in range(8)]
    assert host.peer.lines[1][0].HasField("hello")
    assert host.peer.lines[1][0].hello.session == host.peer.lines[0][0].hello.session


def test_what_is_said_while_nobody_listens_is_said_later(host, courier):
    host.down()
    for number in range(100):
        courier.post(note(str(number)))
    host.up()
    until(lambda: len(host.peer.texts()) == 100)
    assert host.peer.texts() == [str(number) for number in range(100)]


def test_nothing_is_lost_in_many_attempts_to_open_the_line(host, courier):
    """A call that failed goes on asking for messages for a while: it must get none."""
    host.down()
    for number in range(60):
        courier.post(note(str(number)))
        time.sleep(0.02)
    host.up()
    for number in range(60, 120):
        courier.post(note(str(number)))
        time.sleep(0.02)
    until(lambda: not courier._unsaid())
    assert host.peer.texts() == [str(number) for number in range(120)]
    assert host.peer.heard(-1) == list(range(2, 122))


def test_a_new_line_says_which_command_was_the_last(host, courier):
    host.peer.answer = lambda request: [
        *acknowledge(request),
        Response(command=trainer_pb2.SequencedCommand(sequence=7, command=control_pb2.ControlCommand())),
    ]
    courier.post(note("x"))
    until(lambda: courier._arrived)
    host.down()
    host.up()
    until(lambda: len(host.peer.lines) > 1 and host.peer.lines[-1])
    assert host.peer.lines[-1][0].hello.last_command_sequence == 7


def test_jobs_without_a_result_are_asked_for_again(host, courier):
    """The runtime may be a new one, which knows nothing of them; an old one takes a job once."""
    courier.post(lambda: job(1))
    courier.post(lambda: job(2))
    courier.post(lambda: job(3))
    courier.post(lambda: Request(cancelled_job="run-1/trial/3"))
    until(lambda: len(host.peer.heard()) == 4)
    host.peer.answer = lambda request: [*acknowledge(request), result(1)]
    courier.post(note("answer the first"))
    until(lambda: courier._arrived)
    until(lambda: not courier._unsaid())
    host.peer.answer = acknowledge
    host.down()
    host.up()
    until(lambda: len(host.peer.lines) == 2 and host.peer.heard())
    assert [request.job.job_id for request in host.peer.lines[1] if request.HasField("job")] == ["run-1/trial/2"]


def test_a_twin_that_has_answered_in_part_is_still_asked_for_again(host, courier):
    courier.post(lambda: job(1))
    partial = result(1, twin=nursery_pb2.TwinResult(partial=True))
    host.peer.answer = lambda request: [*acknowledge(request), partial]
    courier.post(note("x"))
    until(lambda: courier._arrived)
    until(lambda: not courier._unsaid())
    host.peer.answer = acknowledge
    host.down()
    host.up()
    until(lambda: len(host.peer.lines) == 2 and host.peer.heard())
    assert host.peer.lines[1][1].job.job_id == "run-1/trial/1"


def test_readings_are_dropped_first_and_counted(host, courier, monkeypatch):
    monkeypatch.setattr(module, "MAX_UNSENT", 20)
    host.down()
    for number in range(12):
        courier.post(note(str(number)))
        courier.post(progress(number))
        until(lambda: not courier._thunks)
    assert len(courier._unacknowledged) == 20
    assert courier.dropped == 5
    host.up()
    until(lambda: not courier._unsaid())
    assert host.peer.texts() == [str(number) for number in range(12)]
    steps = [r.progress.step for r in host.peer.lines[-1] if r.HasField("progress")]
    assert steps == list(range(5, 12))


def test_too_much_that_must_not_be_lost_ends_the_line_with_an_error(host, courier, monkeypatch):
    monkeypatch.setattr(module, "MAX_UNSENT", 20)
    host.down()
    for number in range(30):
        courier.post(note(str(number)))
        until(lambda: not courier._thunks or courier._fatal)
    with pytest.raises(Exhausted, match="20 messages that must not be lost"):
        until(lambda: courier.collect() and False)


def test_a_stuck_courier_refuses_more_than_it_can_hold(host, courier, monkeypatch):
    monkeypatch.setattr(module, "MAX_UNSENT", 20)
    gate = threading.Event()
    courier.post(lambda: gate.wait(30) and None)
    try:
        with pytest.raises(Exhausted, match="20 messages wait for the courier"):
            for number in range(40):
                courier.post(note(str(number)))
    finally:
        gate.set()


def test_what_cannot_be_made_is_told_and_the_line_goes_on(host, courier):
    def full() -> Request:
        raise OSError(28, "No space left on device", "/runs/x/spool/arm-1.safetensors")

    courier.post(full)
    courier.post(note("after"))
    until(lambda: len(host.peer.texts()) == 2)
    assert "No space left on device: '/runs/x/spool/arm-1.safetensors'" in host.peer.texts()[0]
    assert host.peer.lines[0][1].note.level == "error"
    assert host.peer.texts()[1] == "after"


def test_what_arrives_is_collected_in_order_and_once(host, courier):
    replies = [result(number) for number in range(50)]
    host.peer.answer = lambda request: [*acknowledge(request), *(replies if request.HasField("note") else [])]
    courier.post(note("go"))
    until(lambda: len(courier._arrived) == 50)
    assert [item.job_id for item in courier.collect()] == [f"run-1/trial/{number}" for number in range(50)]
    assert courier.collect() == []


def test_waiting_ends_with_the_answer_or_the_limit(host, courier):
    found: list[object] = []
    host.peer.answer = lambda request: [*acknowledge(request), result(1)]
    courier.post(note("go"))
    courier.wait(lambda: bool(found.extend(courier.collect()) or found), limit_s=30)
    assert found
    with pytest.raises(DeadlineExceeded, match=r"no answer from the runtime at .* within 0\.2 s"):
        courier.wait(lambda: False, limit_s=0.2)


@pytest.mark.parametrize("refusal", [Conflict("run 'run-1' is attached"), Unauthenticated("not your token")])
def test_a_refusal_that_does_not_pass_is_raised_at_once(host, refusal):
    host.peer.refusal = refusal
    made = courier_to(host.address)
    with pytest.raises(type(refusal), match=str(refusal)):
        made.start()
    with pytest.raises(type(refusal)):
        made.collect()
    with pytest.raises(type(refusal)):
        made.wait(lambda: False)
    made.post(note("nobody hears this"))
    made.close()


def test_a_wrong_token_is_refused(host):
    made = courier_to(host.address, "guessed")
    with pytest.raises(Unauthenticated):
        made.start()
    made.close()


def test_no_runtime_at_all_is_said_with_the_way_out():
    with Host(Peer()) as host:
        address = host.address
    made = courier_to(address)
    with pytest.raises(Unavailable, match=rf"no runtime answers at {address} within 0\.5 s; start one with `esper up`"):
        made.start(timeout_s=0.5)


def test_closing_sends_what_is_queued_and_ends_the_thread(host):
    made = courier_to(host.address)
    made.start()
    for number in range(200):
        made.post(note(str(number)))
    made.post(GOODBYE)
    began = time.monotonic()
    made.close(timeout_s=30.0)
    assert time.monotonic() - began < 15, "it waited for what had been acknowledged"
    assert len(host.peer.texts()) == 200
    assert host.peer.lines[-1][-1].HasField("goodbye")
    assert not made._thread.is_alive() and made._loop.is_closed()


def test_closing_without_anybody_to_hear_it_takes_no_longer_than_told(host):
    made = courier_to(host.address)
    made.start()
    host.down()
    made.post(note("lost"))
    made.close(timeout_s=0.3)
    assert not made._thread.is_alive()


def test_after_a_goodbye_the_run_is_not_begun_again(host):
    made = courier_to(host.address)
    made.start()
    made.post(GOODBYE)
    until(lambda: not made._unsaid())
    time.sleep(0.3)
    assert len(host.peer.lines) == 1
    made.post(note("one more thing"))
    until(lambda: host.peer.texts() == ["one more thing"])
    made.close()


async def test_a_kernel_is_loaded_on_the_couriers_thread(courier):
    kernel, threads = object(), []

    async def load(artifact_id, interface):
        threads.append(threading.current_thread().name)
        if artifact_id == "absent":
            raise NotFound("no kernel absent")
        return kernel

    courier.load = load
    seed = SeedId("fc1", 0)
    for artifact_id in ("here", "absent"):
        courier.load_kernel(seed, artifact_id, OFFERED)
    until(lambda: len(courier._arrived) == 2)
    assert courier.collect() == [Loaded(seed, "here", kernel), Loaded(seed, "absent", None, "no kernel absent")]
    assert set(threads) == {"esper-courier"}


def test_kernels_load_from_the_cache_while_the_line_is_down(host, courier):
    async def load(artifact_id, interface):
        return artifact_id

    courier.load = load
    host.down()
    courier.load_kernel(SeedId("fc1", 0), "cached", OFFERED)
    until(lambda: courier._arrived)
    assert courier.collect()[0].kernel == "cached"
    with pytest.raises(Unavailable, match="is down"):
        courier.channel()


def test_a_fault_of_the_couriers_own_is_heard_by_the_training_thread(host, courier, monkeypatch):
    monkeypatch.setattr(courier, "_take", lambda reply: 1 / 0)
    courier.post(note("x"))
    with pytest.raises(EsperError, match="ZeroDivisionError"):
        until(lambda: courier.collect() and False)
