"""A run of several ranks on a real runtime, under torchrun: grown on all alike, killed, started again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.flow.conftest import Calm
from tests.flow.drills import copy_stock
from tests.runtime.processes import ROOT, Runtime

pytestmark = pytest.mark.slow


def torchrun(folder: Path, *arguments: str, ranks: int = 2, restarts: int = 0, limit_s: float = 200.0) -> str:
    """The output of a script on several ranks, which must end well."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # or restarted ranks look for each other at old addresses
    launcher = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={ranks}",
        f"--max_restarts={restarts}",
    ]
    process = subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    finally:
        if process.poll() is None:  # SIGTERM, so that it ends its ranks
            process.terminate()
            process.wait(30)
    assert process.returncode == 0, output[-4000:]
    return output


def grow(runtime: Runtime, folder: Path, *, ranks: int = 2, die_at: int = 0) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    script = ["-m", "tests.flow.ranked_run", str(runtime.home.root), str(folder), str(die_at)]
    torchrun(folder, *script, ranks=ranks, restarts=int(die_at > 0))
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def undisturbed(calm: Calm, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank of a run that nobody disturbs sees."""
    folder = tmp_path_factory.mktemp("ranks")
    copy_stock(calm.home, folder / "home")
    runtime = Runtime(folder)
    try:
        return grow(runtime, folder / "run")
    finally:
        assert runtime.stop() == 0, runtime.text


def test_it_grows_alike_on_all_ranks(undisturbed):
    first, second = undisturbed
    assert first["world"] == 2 and first["attempt"] == 0
    assert first["digests"] == second["digests"] and first["moves"] == second["moves"]
    assert any(" FOSSILIZED " in move for move in first["moves"])


def test_a_killed_rank_is_started_again_with_the_others_and_the_run_ends_as_if_it_had_lived(
    runtime, undisturbed, tmp_path
):
    seen = grow(runtime, tmp_path / "killed", die_at=115)
    assert [one["attempt"] for one in seen] == [1, 1]
    begun = seen[0]["from"]
    assert 0 < begun < 115
    for one, other in zip(seen, undisturbed, strict=True):
        assert one["from"] == begun and one["digests"] == other["digests"][begun:]


def test_the_example_runs_as_the_docs_say(nats_server, tmp_path):
    example = ROOT / "examples" / "ddp"
    for name in ("train.py", "parity.py"):
        (tmp_path / name).write_text((example / name).read_text())
    output = torchrun(tmp_path, "train.py", "--steps", "600")
    assert "2 ranks, from step 0" in output and " parameters" in output
    assert (tmp_path / "runs" / "ddp" / "model.pt").exists()
    assert not (tmp_path / ".esper" / "runtime.json").exists()  # the runtime that it started has gone with it
