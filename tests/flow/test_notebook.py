"""The notebook in examples/ as somebody would run it: every cell, in a kernel and beside a runtime of its own."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook" / "plain_loop.ipynb"


def executed(folder: Path) -> dict[str, str]:
    """What each code cell printed, warnings included. Raises CellExecutionError where one fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(folder)}})
    client.create_kernel_manager()
    client.km.shutdown_wait_time = 30  # the runtime writes the report before it goes with the kernel
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT)})
    return {cell.id: "".join(out.get("text", "") for out in cell.get("outputs", [])) for cell in notebook.cells}


def test_the_notebook_is_stored_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")  # of the kernel's own packages
def test_a_plain_loop_in_a_notebook_grows_its_model(nats_server, tmp_path):
    printed = executed(tmp_path)
    everything = "".join(printed.values())
    assert everything.count("no worker can import task 'product'") == 1
    assert "pass task='module:callable'" in printed["attach"]
    (run,) = (tmp_path / "runs").iterdir()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    tried = [e for e in events if e["kind"] == "transition" and e["to"] == "GRAFTING"]
    assert tried and "nursery steps, held-out gain" in tried[0]["reason"]
    verdicts = [e["verdict"] for e in events if e["kind"] == "decision" and e.get("verdict")]
    assert verdicts and {verdict["control"] for verdict in verdicts} == {"ablation"}
    assert any("no worker can import" in e["text"] for e in events if e["kind"] == "note")
    assert "no worker can import" in (run / "report.html").read_text()
    assert "parameters" in printed["result"]
