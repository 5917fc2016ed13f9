"""The CPU code under AddressSanitizer and UndefinedBehaviorSanitizer: the op tests' cases, and two planted faults."""

import re
import shutil
from pathlib import Path

import pytest

from esper.ops import backends

from . import sanitized

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HERE = Path(__file__).parent
OP_TESTS = [
    path
    for op in sorted(set(backends.OPS.values()))
    for path in (HERE / f"test_{op}.py", HERE / f"test_{op}_arguments.py")
    if path.exists()
]


def test_the_op_tests_run_clean(tmp_path):
    """All shapes, dtypes, layouts, slots and threads of the op tests, and every refusal."""
    library = sanitized.build(sanitized.ROOT / "csrc", tmp_path)
    files = [*OP_TESTS, HERE / "test_library_refusals.py"]
    options = ["-m", "not slow and not gpu", "-p", "no:cacheprovider", "-o", "timeout=600"]
    status, printed = sanitized.python("-m", "tests.ops.sanitized", library, *options, *files)
    assert status == 0, printed[-6000:]
    assert [line for line in printed.splitlines() if any(word in line for word in sanitized.REPORTS)] == []
    assert int(re.search(r"(\d+) passed", printed)[1]) > 200


FAULTS = {  # planted in csrc/cpu/tiles.h: each shows at one width only
    "std::min(tile_rows, rows - row)": "(width == 5 ? tile_rows : std::min(tile_rows, rows - row))",
    "tile_cols = std::max": "static volatile int64_t most; most = INT64_MAX; if (width == 77) most = most + 1;\n"
    "    tile_cols = std::max",
}
CALL = """
import sys, torch
torch.ops.load_library(sys.argv[1])
width = int(sys.argv[2])
with torch.no_grad():
    torch.ops.esper_native.blend(torch.zeros(3, width), [torch.zeros(3, 4)], torch.ones(1), [0, 4], 1, False)
print("done")
"""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    csrc = shutil.copytree(sanitized.ROOT / "csrc", folder / "csrc")
    tiles = (csrc / "cpu/tiles.h").read_text()
    for sound, fault in FAULTS.items():
        assert tiles.count(sound) == 1
        tiles = tiles.replace(sound, fault)
    (csrc / "cpu/tiles.h").write_text(tiles)
    return sanitized.build(csrc, folder)


@pytest.mark.parametrize(
    ("width", "report"),
    [(5, "AddressSanitizer: heap-buffer-overflow"), (77, "runtime error: signed integer overflow")],
)
def test_a_planted_fault_is_reported(faulty, width, report):
    status, printed = sanitized.python("-c", CALL, faulty, str(width))
    assert status != 0
    assert report in printed
    assert "done" not in printed


def test_the_faulty_library_is_sound_elsewhere(faulty):
    """So the reports above are of the faults, not of the sanitizers' own doing."""
    status, printed = sanitized.python("-c", CALL, faulty, "6")
    assert status == 0, printed
    assert printed.strip().endswith("done")
