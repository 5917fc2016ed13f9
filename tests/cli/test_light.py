"""Commands that read files start without what they do not need."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "grpc", "nats", "sqlalchemy", "triton")


@pytest.mark.parametrize("arguments", [["--help"], ["runs"]], ids=" ".join)
def test_a_light_command_loads_nothing_heavy(tmp_path, arguments):
    program = (
        "import sys\nfrom esper.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "loaded: []"
