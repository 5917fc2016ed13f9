"""The shared skip: it names what is missing, and fails where that was promised."""

import pytest

from tests.requirements import require


def test_what_is_there_is_no_skip():
    require("cpp", "")


def test_what_is_missing_is_a_skip_that_names_it(monkeypatch):
    monkeypatch.setenv("ESPER_REQUIRE", "triton")
    with pytest.raises(pytest.skip.Exception, match="cpp: build it"):
        require("cpp", "build it")


def test_what_was_promised_is_a_failure(monkeypatch):
    monkeypatch.setenv("ESPER_REQUIRE", "triton,cpp")
    with pytest.raises(pytest.fail.Exception, match=r"cpp is required here .* and absent: build it"):
        require("cpp", "build it")
