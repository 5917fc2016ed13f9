"""A runtime's home: who may read it, who holds it, where its runtime is."""

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from contextlib import nullcontext

import pytest

from esper.errors import Conflict, InvalidConfig, NotFound, Unavailable
from esper.runtime.home import KEEPERS, Contact, Home
from esper.runtime.serve import COMPONENTS


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def contact(home, pid=None):
    return Contact("127.0.0.1:1", str(home.token_file), pid or os.getpid(), "nats://127.0.0.1:2", "0")


def test_the_token_is_made_once_and_only_its_owner_may_read_it(home):
    old = os.umask(0)
    try:
        token = home.make_token()
    finally:
        os.umask(old)
    assert stat.S_IMODE(home.token_file.stat().st_mode) == 0o600
    assert home.make_token() == token == Home(home.root).make_token()
    assert len(token) >= 32


def test_two_homes_have_two_tokens(tmp_path):
    assert Home(tmp_path / "a").make_token() != Home(tmp_path / "b").make_token()


def test_a_home_is_held_by_one_at_a_time(home):
    with home.held():
        with pytest.raises(Conflict, match=rf"another process runs the runtime of {home.root}.*--home"), home.held():
            pass
        with home.held("urza"):  # a part of it is another's
            pass
    with home.held():
        pass


def test_a_home_whose_holder_was_killed_is_free(home):
    hold = (
        "import os, sys; from pathlib import Path; from esper.runtime.home import Home\n"
        "with Home(Path(sys.argv[1])).held(): print('held', flush=True); os.kill(os.getpid(), 9)"
    )
    holder = subprocess.run([sys.executable, "-c", hold, str(home.root)], capture_output=True, text=True)
    assert holder.stdout == "held\n" and holder.returncode == -9
    with home.held():
        pass


def test_a_runtime_is_found_where_it_said_it_is_until_it_goes(home):
    with pytest.raises(NotFound, match=rf"no runtime runs in {home.root}; start one with `esper up --home"):
        home.contact()
    with home.held():
        home.make_token()
        home.publish(contact(home))
        assert home.contact() == contact(home)
        assert home.contact().token() == home.make_token()
        home.withdraw()
        home.withdraw()
    with pytest.raises(NotFound):
        home.contact()


def test_a_runtime_that_was_killed_is_not_found(home):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    home.make_token()
    home.publish(contact(home, child.pid))
    with pytest.raises(NotFound, match="no runtime runs"):
        home.contact()


@pytest.mark.parametrize("holds", [False, True], ids=["nobody", "another"])
def test_a_runtime_that_was_killed_is_not_found_though_its_pid_is_anothers_by_now(home, holds):
    """What a reboot leaves. A process that holds the home and has not said where it is, is not it either."""
    home.make_token()
    home.publish(contact(home, pid=1))
    if not holds:
        with home.held():  # a lock file is there
            pass
    with home.held() if holds else nullcontext(), pytest.raises(NotFound, match="no runtime runs"):
        home.contact()


def test_the_holder_of_a_home_is_known_while_it_holds_it(home):
    assert home.holder() is None
    with home.held("runtime", "urza", serves=False):
        for part in ("runtime", "urza"):
            holder = home.holder(part)
            assert holder is not None and (holder.pid, holder.serves) == (os.getpid(), False)
        assert home.holder("simic") is None
    assert home.holder() is None and home.holder("urza") is None


def test_who_asks_for_the_holder_does_not_keep_another_from_holding(home):
    with home.held():
        pass
    with home.lock_file().open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: fcntl.flock(asking, fcntl.LOCK_UN)).start()
        with home.held():
            pass


def test_a_part_that_is_held_keeps_the_whole_from_being_held(home):
    assert set(KEEPERS) < set(COMPONENTS)
    with home.held("urza"):
        with pytest.raises(Conflict, match=rf"another process runs the urza of .*kill {os.getpid()}"):
            home.held("runtime", *KEEPERS).__enter__()
        assert home.holder() is None  # what could be held is let go again


def test_a_home_that_cannot_be_one_is_named_with_the_way_out(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    words = "file.* cannot be the folder of a runtime: a file is in the way; choose a folder that .* with --home"
    for home in (Home(file), Home(file / "home")):
        with pytest.raises(InvalidConfig, match=words), home.held():
            pass
        with pytest.raises(InvalidConfig, match=words):
            home.make_token()
        with pytest.raises(NotFound, match="no runtime runs"):
            home.contact()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_home_that_may_not_be_written_is_named_with_the_way_out(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidConfig, match=r"Permission denied; choose a folder that is yours"), Home(tmp_path).held():
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({"address": "x"}), "\x00" * 100])
def test_a_damaged_contact_file_is_no_runtime(home, text):
    home.make_token()
    home.contact_file.write_text(text)
    with pytest.raises(NotFound, match="no runtime runs"):
        home.contact()


def test_a_token_that_is_gone_is_said_with_the_way_out(home):
    with pytest.raises(Unavailable, match=f"token file {home.token_file}.*restart the runtime"):
        contact(home).token()


def test_folders_are_made_when_they_are_asked_for(home):
    assert home.folder("logs").is_dir()
    assert home.database("urza") == home.root / "db" / "urza.sqlite"
    assert home.key("forge").parent == home.trust_file.parent
