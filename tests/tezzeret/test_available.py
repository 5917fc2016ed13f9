"""What a forge makes and for what, and what it says of the rest."""

import pytest

from esper.artifact.body import PIPELINES
from esper.errors import InvalidConfig, InvalidRequest, Unavailable
from esper.tezzeret import available
from esper.tezzeret import compile as compiling
from esper.tezzeret.available import check_targets, made_for, refused, target_for
from esper.tezzeret.kernels import triton_version
from tests.requirements import require

BOTH = ("cpu", "sm_80", "sm_90")


@pytest.fixture
def triton():
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")


@pytest.fixture
def no_triton(monkeypatch):
    for module in (available, compiling):
        monkeypatch.setattr(module, "triton_version", lambda: "")


def test_an_order_is_for_what_it_names_and_else_for_the_first_device(triton):
    assert target_for("standard", "sm_90", BOTH) == "sm_90"
    assert target_for("standard", "", BOTH) == "sm_80"
    assert {target_for("fast", asked, BOTH) for asked in ("", "cpu", "sm_90", "gfx942")} == {"cpu"}


def test_what_a_forge_was_not_set_up_for_names_the_setting(triton):
    with pytest.raises(Unavailable, match=r"for cpu, sm_80, sm_90, not for gfx942; .*--forge-targets cpu,.*,gfx942"):
        target_for("standard", "gfx942", BOTH)
    with pytest.raises(Unavailable, match="ask for fast"):
        target_for("standard", "", ("cpu",))
    with pytest.raises(InvalidRequest, match="pipelines are"):
        target_for("slow", "", BOTH)


def test_fast_is_refused_nowhere_and_the_rest_with_a_reason(triton):
    assert set(refused("cpu", BOTH)) == set(refused("", ("cpu",))) == set(PIPELINES) - {"fast"}
    assert "standard" not in refused("sm_90", BOTH)
    assert "--forge-targets" in refused("sm_100", BOTH)["standard"]


def test_what_is_made_for_which_device(triton):
    assert made_for(("cpu",)) == {"fast": ("cpu",)}
    made = made_for(BOTH)
    assert (made["fast"], made["standard"]) == (("cpu",), ("sm_80", "sm_90"))


def test_without_triton_there_is_fast_alone(no_triton):
    assert made_for(BOTH) == {"fast": ("cpu",)}
    assert "pip install 'esper[triton]'" in refused("sm_90", BOTH)["standard"]


def test_settings_name_targets_once_and_the_cpu_always(triton):
    assert check_targets(["sm_90", "cpu", "sm_90"]) == ("cpu", "sm_90")
    assert check_targets([]) == ("cpu",)


@pytest.mark.parametrize(("name", "near"), [("sm90", "sm_90"), ("cuda", "cpu"), ("gfx941", "gfx942")])
def test_an_unknown_target_is_told_the_nearest_and_all(name, near):
    with pytest.raises(InvalidConfig) as refusal:
        check_targets([name])
    assert f"{name!r} is no target; the nearest is {near}" in str(refusal.value)
    assert "all are cpu, sm_80, sm_90, sm_100, gfx942" in str(refusal.value)


def test_a_device_without_triton_names_the_remedy(no_triton):
    assert check_targets(["cpu"]) == ("cpu",)
    with pytest.raises(InvalidConfig, match=r"kernels for sm_90 .* not installed; pip install 'esper\[triton\]'"):
        check_targets(["cpu", "sm_90"])
