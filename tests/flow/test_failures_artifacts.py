"""What a run with fossils leaves, damaged: it is refused by name before anything of it is parsed."""

import json
import shutil
from pathlib import Path

import pytest

from esper.errors import Corrupt, NotFound, Untrusted
from esper.runtime.rebuild import rebuild_run
from esper.runtime.runs import StoredRun, find_run
from tests.artifact.samples import flipped
from tests.flow.conftest import Calm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]  # the run itself takes a minute


@pytest.fixture
def run(calm: Calm, tmp_path: Path) -> StoredRun:
    """A copy to be damaged."""
    shutil.copytree(calm.directory, tmp_path / "drill")
    return find_run(tmp_path, "drill")


def kernel_files(run: StoredRun) -> list[Path]:
    return sorted(path for path in (run.folder / "kernels").rglob("*") if path.is_file())


def test_it_is_rebuilt_from_its_fossils_and_proved_equal(run):
    assert "rebuilt from 2 fossils and model.pt; " in rebuild_run(run)


def test_a_flipped_byte_in_any_file_of_a_kernel_is_refused_before_it_is_parsed(run, monkeypatch):
    parsed: list[object] = []
    monkeypatch.setattr("torch.jit.load", lambda *arguments, **options: parsed.append(arguments))
    names = set()
    for path in kernel_files(run):
        kept = path.read_bytes()
        path.write_bytes(flipped(kept, len(kept) // 2))
        with pytest.raises((Corrupt, Untrusted), match=path.parent.name[:12] if path.parent.name[0] != "m" else ""):
            rebuild_run(run)
        path.write_bytes(kept)
        names.add(path.name)
    assert {"body.json", "attestations.json"} < names
    assert not parsed


def test_a_kernel_nobody_promoted_is_refused(run):
    path = next(path for path in kernel_files(run) if path.name == "attestations.json")
    path.write_text(json.dumps([one for one in json.loads(path.read_text()) if one["role"] == "built"]))
    with pytest.raises(Untrusted):
        rebuild_run(run)


def test_signatures_of_keys_that_are_not_trusted_are_refused(run):
    path = run.folder / "trust.json"
    keys = json.loads(path.read_text())
    path.write_text(json.dumps({"forge": keys["evaluation"], "evaluation": keys["forge"]}))
    with pytest.raises(Untrusted):
        rebuild_run(run)


def test_a_kernel_that_is_gone_is_named(run):
    shutil.rmtree(run.folder / "kernels")
    with pytest.raises(NotFound, match="no artifact folder"):
        rebuild_run(run)
