"""Hostile callables in the evaluator's child: each is stopped, for the reason given, and a good kernel passes after."""

import json
import socket

import pytest

from tests.artifact.samples import built

from .artifacts import TITLE, WHERE
from .callables import ATTACKS, LIMITS
from .test_artifacts import evaluated, judged

DENIED = "raised PermissionError: [Errno 1] Operation not permitted"
ENDINGS = {
    "sleep": "was still at work after 1 s and was ended",
    "burn": f"used {LIMITS.cpu_s} s of processor time, the limit",
    "fork bomb": DENIED,
    "memory": "raised MemoryError",
    "create": DENIED,
    "overwrite": DENIED,
    "truncate": DENIED,
    "unlink": DENIED,
    "rename": DENIED,
    "chmod": DENIED,
    "mkdir": DENIED,
    "symlink": DENIED,
    "kill worker": DENIED,
    "kill group": DENIED,
    "open many": "raised OSError: [Errno 24] Too many open files",
}


def attacked(lab, name: str, argument: str = "") -> dict:
    return json.loads(lab.call("tests.urabrask.hostile.callables:run", f"{name}\0{argument}".encode()))


def test_every_attack_has_its_ending():
    assert ENDINGS.keys() | {"connect"} == ATTACKS.keys()


@pytest.mark.parametrize("name", ENDINGS)
def test_an_attack_is_stopped_and_its_reason_known(lab, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    victim.chmod(0o600)
    seen = attacked(lab, name, str(victim))
    assert not seen["done"]
    assert seen["ending"].startswith(ENDINGS[name]), seen["ending"]
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    assert victim.read_text() == "precious"
    assert victim.stat().st_mode & 0o777 == 0o600


def test_a_connection_is_refused_and_nobody_called(lab):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        seen = attacked(lab, "connect", str(server.getsockname()[1]))
        assert not seen["done"]
        assert "Operation not permitted" in seen["ending"] or "unreachable" in seen["ending"]
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_good_kernel_passes_afterwards(lab):
    for name in ("fork bomb", "memory", "kill worker"):
        attacked(lab, name)
    assert judged(evaluated(lab, built(TITLE, WHERE))).passed
