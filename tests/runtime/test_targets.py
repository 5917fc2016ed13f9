"""What a device's kernels are compiled for, and for which devices a forge makes them if nobody says."""

from types import SimpleNamespace

import pytest
import torch

from esper.artifact.body import TARGETS
from esper.errors import InvalidConfig
from esper.runtime import targets
from esper.runtime.serve import ServeOptions
from esper.runtime.targets import AMD, NVIDIA, default_targets, target_of_device
from esper.tezzeret import available

CUDA = torch.device("cuda", 0)


@pytest.fixture
def device(monkeypatch):
    """A machine with devices of these compute capabilities."""

    def pretend(*capabilities: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda one: capabilities[torch.device(one).index or 0])
        monkeypatch.setattr(targets, "triton_version", lambda: "3")

    return pretend


def test_every_target_is_known_here():
    assert {"cpu", *NVIDIA, *AMD} == set(TARGETS)


@pytest.mark.parametrize(
    ("capability", "target"),
    [((8, 0), "sm_80"), ((8, 6), "sm_80"), ((9, 0), "sm_90"), ((10, 0), "sm_100"), ((7, 5), "cpu"), ((12, 0), "cpu")],
)
def test_a_device_has_the_target_whose_code_it_runs(device, capability, target):
    device(capability)
    assert target_of_device(CUDA) == target
    assert target_of_device(torch.device("cpu")) == "cpu"


def test_an_amd_device_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6")
    for name, target in (("gfx942:sramecc+:xnack-", "gfx942"), ("gfx1100", "cpu")):
        found = SimpleNamespace(gcnArchName=name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device, found=found: found)
        assert target_of_device(CUDA) == target


def test_if_nobody_says_it_is_for_the_cpu_and_the_devices_here(device, monkeypatch):
    device()
    assert default_targets() == ("cpu",)
    device((9, 0), (9, 0), (8, 6), (7, 0))
    assert default_targets() == ("cpu", "sm_90", "sm_80")
    monkeypatch.setattr(targets, "triton_version", lambda: "")
    assert default_targets() == ("cpu",)  # nobody asked for a device's, and none could be made


def test_the_setting_is_the_forges(monkeypatch):
    with pytest.raises(InvalidConfig, match="--forge-targets is for tezzeret, got it for urza"):
        ServeOptions(components=("urza",), broker="nats://t@127.0.0.1:1", forge_targets=("cpu",))
    with pytest.raises(InvalidConfig, match="'sm_70' is no target; the nearest is sm_"):
        ServeOptions(forge_targets=("sm_70",))
    monkeypatch.setattr(available, "triton_version", lambda: "")
    with pytest.raises(InvalidConfig, match="Triton, which is not installed; pip install"):
        ServeOptions(forge_targets=("sm_90",))
