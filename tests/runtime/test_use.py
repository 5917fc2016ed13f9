"""Who uses a runtime: each keeps it, none can come while it ends, and who is killed uses it no more."""

import subprocess
import sys

import pytest

from esper.errors import InvalidConfig, Unavailable
from esper.runtime.home import Home
from esper.runtime.use import Use


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def begun(home) -> Use:
    use = Use(home)
    use.begin(0.0)
    return use


def test_one_of_two_users_is_not_alone_and_the_last_is(home):
    first, second = begun(home), begun(home)
    assert not first.alone()
    first.close()
    assert second.alone()
    second.close()


def test_a_runtime_without_users_is_alone_and_one_with_users_is_not(home):
    runtime, user = Use(home), begun(home)
    assert not runtime.alone()
    user.close()
    assert runtime.alone()
    runtime.close()


def test_nobody_comes_to_a_runtime_that_is_ending_until_it_has_gone(home):
    runtime, user = Use(home), Use(home)
    assert runtime.alone()
    with home.held(), pytest.raises(Unavailable, match=r"ending for 0 s; end it with: kill -9 \d+, or choose another"):
        user.begin(0.0)
    runtime.close()
    user.begin(0.0)
    user.close()


def test_who_is_killed_uses_it_no_more(home):
    use = (
        "import os, sys; from pathlib import Path\n"
        "from esper.runtime.home import Home; from esper.runtime.use import Use\n"
        "Use(Home(Path(sys.argv[1]))).begin(0.0); print('used', flush=True); os.kill(os.getpid(), 9)"
    )
    user = subprocess.run([sys.executable, "-c", use, str(home.root)], capture_output=True, text=True)
    assert user.stdout == "used\n" and user.returncode == -9
    runtime = Use(home)
    assert runtime.alone()
    runtime.close()


def test_a_home_that_cannot_be_one_is_named(tmp_path):
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(InvalidConfig, match=r"file/home cannot be .*: a file is in the way.*--home"):
        Use(Home(tmp_path / "file" / "home"))
    (tmp_path / "home" / "users.lock").mkdir(parents=True)
    with pytest.raises(InvalidConfig, match=r"users\.lock cannot be opened \(Is a directory\); choose another --home"):
        Use(Home(tmp_path / "home"))
