"""A runtime's home: who may read it, who holds it, where its runtime is."""

import json
import os
import stat
import subprocess
import sys

import pytest

from esper.errors import Conflict, NotFound, Unavailable
from esper.runtime.home import Contact, Home


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
