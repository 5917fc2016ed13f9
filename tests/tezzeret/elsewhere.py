"""A script in another process, with another copy of the sources, folder for temporary files, cache and hash seed."""

import os
import subprocess
import sys
from pathlib import Path

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
