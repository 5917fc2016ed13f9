"""Timing on a device: what the process is asked, that its launches are the kernels', and what it says without a device.

What a device measures is in tests/gpu/test_tile_timing.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.artifact.regions import Region
from esper.blueprint.interface import Interface, Kind
from esper.blueprint.plan import Plan, plan
from esper.tezzeret import timed as timing
from esper.tezzeret.choose import Tile
from esper.tezzeret.kernels import source_files, triton_version
from esper.tezzeret.regions import find_regions
from esper.tezzeret.timed import REQUEST, device_timer, request, size_for, timed
from esper.tezzeret.triton_source import arguments
from tests.requirements import require
from tests.tezzeret.fusable import BROADCAST, PAIR

ROOT = Path(__file__).resolve().parents[2]
INTERFACE = Interface(Kind.TOKENS, 8)
TILES = [Tile(16, (1, 2)), Tile(4, (2, 1))]
LAUNCHED = """
import sys, json, torch
from pathlib import Path
from esper.tezzeret.timed import calls
home = Path(sys.argv[1])
for call in calls(json.loads((home / "request.json").read_text()), home / "region.py", torch.device("cpu")):
    call()
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> tuple[dict, Path]:
    concrete = plan(BROADCAST, INTERFACE)
    region = next(one for one in find_regions(concrete)[0] if any(each.per_sample for each in one.inputs))
    return asked_of(region, concrete, tmp_path_factory.mktemp("timed"))


def asked_of(region: Region, concrete: Plan, home: Path) -> tuple[dict, Path]:
    require("triton", "" if triton_version() else "triton is not installed: pip install 'esper[triton]'")
    wanted = request(region, torch.float32, TILES, "sm_90", (3, 21))
    (home / REQUEST).write_text(json.dumps(wanted))
    (home / "region.py").write_bytes(source_files([region], concrete)[region.source])
    for one, direction in zip(wanted["passes"], ("forward", "backward"), strict=True):
        assert {"state_ptr", "active", "positions", *one["tensors"]} == set(arguments(region, direction))
    return wanted, home


@pytest.mark.parametrize("channels", [8, 540, 4096])
def test_timing_takes_little_of_a_device(channels):
    concrete = plan(BROADCAST, Interface(Kind.TOKENS, channels))
    region = find_regions(concrete)[0][0]
    samples, positions = size_for(region)
    assert samples % 2 and positions % 2 and positions >= 100
    assert samples * (positions - 1) * channels <= 1 << 24


def test_the_request_has_room_for_every_tile(asked):
    wanted, _ = asked
    assert wanted["positions"] == 21
    assert [tile["programs"] for tile in wanted["tiles"]] == [3 * 2, 3 * 6]
    sums = {rows for name, (_, rows, _) in wanted["passes"][1]["tensors"].items() if name.endswith("_sums_ptr")}
    assert sums == {18}
    assert {rows for _, rows, _ in wanted["passes"][0]["tensors"].values()} == {3, 3 * 21}


def test_a_pairs_factors_have_all_positions_and_its_matrices_their_ranks(tmp_path):
    concrete = plan(PAIR, INTERFACE)
    (region,), _ = find_regions(concrete)
    asked = asked_of(region, concrete, tmp_path)
    tensors, (one,) = asked[0]["passes"][1]["tensors"], region.pairs
    assert [tensors[f"{word}{one.step}_ptr"] for word in ("outer", "inner")] == [("float32", 63, 8), ("float32", 63, 3)]
    assert tensors[f"p{one.down}_ptr"] == ("float32", 3, 8)
    assert asked[0]["products"] == [
        [f"within{one.step}_ptr", f"outer{one.step}_ptr"],
        [f"behind{one.step}_ptr", f"inner{one.step}_ptr"],
    ]
    test_the_calls_launch_the_kernels(asked)


def test_the_calls_launch_the_kernels(asked):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", LAUNCHED, str(asked[1])]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device is here")
def test_without_a_device_there_is_no_timer_and_the_process_says_why(asked):
    assert device_timer("sm_90") is None
    wanted, home = asked
    assert timed(wanted, (home / "region.py").read_bytes()) == ([], "torch sees no device")


def test_a_process_that_fails_or_overruns_is_a_reason(monkeypatch):
    assert timed({"nothing": 0}, b"")[1].startswith("timing failed: ")

    def overrun(command, **_):
        raise subprocess.TimeoutExpired(command, 30)

    monkeypatch.setattr(timing.subprocess, "run", overrun)
    assert timed({}, b"") == ([], "timing took over 30 s")
