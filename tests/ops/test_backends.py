"""Which implementation runs: the choice, its explanation, and what a forced but absent one says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.errors import InvalidConfig, Unavailable
from esper.ops import __main__ as table
from esper.ops import backends, blend, extension

ROOT = Path(__file__).parents[2]
IMPLEMENTATION = sys.modules["esper.ops.blend"]
NOT_BUILT = extension.Extension(path=None, missing="libesper_native.so is not beside esper/ops: build it")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in the repository."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


@pytest.fixture
def not_built(monkeypatch):
    monkeypatch.setattr(extension, "load", lambda: NOT_BUILT)
    backends._forget()
    yield
    monkeypatch.undo()
    backends._forget()


def call(elements: int = 4, *, dtype: torch.dtype = torch.float32, alpha_gradient: bool = False) -> torch.Tensor:
    host = torch.zeros(1, elements, dtype=dtype)
    return blend(host, [torch.ones_like(host)], torch.ones(1, requires_grad=alpha_gradient), channel_dim=1)


def test_a_forced_backend_that_is_absent_is_an_error_with_the_remedy(not_built):
    with (
        backends.forced("cpp"),
        pytest.raises(Unavailable, match="backend cpp cannot run on cpu: libesper_native"),
    ):
        call()


def test_a_backend_for_another_device_is_an_error():
    with backends.forced("cuda"), pytest.raises(Unavailable, match="backend cuda cannot run on cpu: it is for cuda"):
        call()


def test_triton_on_cpu_is_an_error_unless_interpreted():
    run = python("-c", "import tests.ops.test_backends as t; t.call()", ESPER_KERNELS="triton", TRITON_INTERPRET="0")
    assert run.returncode != 0
    assert "Unavailable: blend: backend triton cannot run on cpu: triton" in run.stderr


def test_an_unknown_backend_is_an_error():
    run = python("-c", "import tests.ops.test_backends as t; t.call()", ESPER_KERNELS="fast")
    assert "InvalidConfig: ESPER_KERNELS is 'fast'; it must be one of auto, reference, cpp, cuda, triton" in run.stderr


def test_the_environment_forces_a_backend():
    run = python("-c", "from esper.ops import backends; print(backends.chosen('cpu'))", ESPER_KERNELS="reference")
    assert run.stdout == "reference\n"


def test_auto_without_the_library_is_the_reference(not_built):
    assert backends.chosen("cpu") == "reference"
    assert call(1 << 17, alpha_gradient=True).grad_fn.name() == "AddcmulBackward0"
    assert backends.find("blend", "reference", "cpu") is IMPLEMENTATION.blend_reference


def test_a_device_nobody_wrote_kernels_for_gets_the_reference():
    assert backends.chosen("mps") == "reference"


@pytest.mark.parametrize(
    ("elements", "dtype", "alpha_gradient", "kernel"),
    [
        (backends.FROM_ELEMENTS - 1, torch.float32, True, False),
        (backends.FROM_ELEMENTS, torch.float32, True, True),
        (backends.FROM_ELEMENTS, torch.float32, False, False),
        (backends.FROM_ELEMENTS - 1, torch.float64, True, False),
        (backends.FROM_ELEMENTS, torch.float64, True, True),
        (1, torch.bfloat16, False, True),
        (1, torch.float16, False, True),
    ],
)
def test_auto_leaves_small_tensors_to_torch(using, monkeypatch, elements, dtype, alpha_gradient, kernel):
    with using("cpp"):
        pass  # skips where there is no library
    ran = []
    run = IMPLEMENTATION.run
    monkeypatch.setattr(IMPLEMENTATION, "run", lambda *arguments: ran.append(True) or run(*arguments))
    call(elements, dtype=dtype, alpha_gradient=alpha_gradient)
    assert bool(ran) == kernel


def test_forcing_nests_and_ends():
    before = backends.requested()
    with backends.forced("reference"):
        with backends.forced("cpp"):
            assert backends.requested() == "cpp"
        assert backends.chosen("cpu") == "reference"
    assert backends.requested() == before


def test_only_this_module_reads_the_variable():
    readers = [p.name for p in (ROOT / "esper").rglob("*.py") if 'environ.get("ESPER_KERNELS")' in p.read_text()]
    assert readers == ["backends.py"]


def test_importing_the_ops_imports_no_triton_and_loads_no_library():
    code = (
        "import sys, esper, esper.ops\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('triton', 'kernels_triton')], "
        "'libesper_native' in open('/proc/self/maps').read())"
    )
    assert python("-c", code).stdout == "[] False\n"


def test_the_ops_run_without_triton_and_without_the_library():
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "from pathlib import Path\n"
        "from esper.ops import extension\n"
        "extension.LIBRARY = Path('/nowhere/libesper_native.so')\n"
        "import tests.ops.test_backends as t\n"
        "print(t.call().tolist(), t.call(1 << 17, alpha_gradient=True).shape)\n"
        "from esper.ops import backends\n"
        "print(backends.why_not('triton', 'cuda'))\n"
        "print(backends.why_not('cpp', 'cpu'))\n"
    )
    run = python("-W", "error", "-c", code, ESPER_KERNELS="auto")
    assert run.stdout.splitlines()[:2] == [
        "[[1.0, 1.0, 1.0, 1.0]] torch.Size([1, 131072])",
        "triton is not installed: pip install 'esper[triton]'",
    ], run.stderr
    assert "libesper_native.so is not beside esper/ops (/nowhere): build it with" in run.stdout


def test_the_table_has_a_row_for_every_op_and_backend(capsys):
    table.main()
    printed = capsys.readouterr().out
    for op in backends.OPS:
        for backend in backends.BACKENDS:
            assert any(line.split()[:2] == [op, backend] for line in printed.splitlines()), (op, backend)
    assert f"torch         {torch.__version__}" in printed


def test_the_table_says_why_a_backend_is_not_there(not_built, capsys):
    table.main()
    printed = capsys.readouterr().out
    assert "cpp        -           cpu: libesper_native.so is not beside esper/ops: build it" in printed


def test_an_unknown_name_is_refused_by_the_choice_itself(monkeypatch):
    monkeypatch.setenv("ESPER_KERNELS", "gpu")
    backends._from_environment.cache_clear()
    with pytest.raises(InvalidConfig, match="'gpu'"):
        backends.requested()
    backends._from_environment.cache_clear()
