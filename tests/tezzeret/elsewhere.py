"""Other processes: one with another copy of the sources, folder for temporary files, cache and hash seed; one in which
Triton interprets kernels.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def printed(script: str, folder: Path) -> str:
    """What `script` prints, run in `folder`, which is empty."""
    for package in ("esper", "kernels_triton"):
        (folder / package).symlink_to(ROOT / package)
    (folder / "temporary").mkdir()
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(folder),
        "TMPDIR": str(folder / "temporary"),
        "TRITON_CACHE_DIR": str(folder / "cache"),
    }
    command = [sys.executable, "-W", "ignore", "-c", script]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout.strip()


def interpreted(module: str, folder: Path) -> Any:
    """What `python -m module folder` prints last, as JSON, where Triton interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", module, str(folder)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout.splitlines()[-1])
