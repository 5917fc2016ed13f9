"""Compilers and binary tools that tests of the library run, and libtorch as they link it."""

import shutil
import subprocess
from pathlib import Path

import torch

from tests.requirements import require

TORCH = Path(torch.__file__).parent
LINK_TORCH = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"]


def output_of(*command: str | Path) -> str:
    """What a tool prints; the test skips by name where the tool is absent."""
    tool = str(command[0])
    require(tool, "" if shutil.which(tool) else f"{tool} is not installed: make deps-debian")
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def beside_libtorch(library: Path, folder: Path) -> str:
    """What a C program without Python prints that loads `library` beside libtorch; it is built in `folder`."""
    program, source = folder / "beside_libtorch", Path(__file__).with_name("beside_libtorch.c")
    output_of("cc", "-Wall", "-Werror", source, "-o", program, *LINK_TORCH)
    return output_of(program, library)
