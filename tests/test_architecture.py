"""Who may import what. A package without a row fails, and so does an import that its row does not allow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Everyone may have these.
COMMON = {"errors", "api"}
# A component's edges, besides its own core.
SHELLS = {"service.py": {"rpc", "oona"}, "worker.py": {"rpc", "oona"}}
# Package: other packages its files may import, whatever the file. Reasons stand behind what is not of a lower layer.
MAY_IMPORT: dict[str, set[str]] = {
    "errors.py": set(),
    "api": set(),
    "records.py": set(),
    "ops": set(),
    "stats": set(),
    "rpc": set(),
    "oona": {"rpc"},  # a bus client is a service's client too: validation of what is published
    "blueprint": set(),
    "artifact": {"blueprint"},
    "host": {"blueprint", "ops"},
    "urza": {"artifact", "blueprint"},
    "karn": {"blueprint"},
    "tezzeret": {"artifact", "blueprint"},
    "urabrask": {"artifact", "blueprint", "stats"},
    "kasmina": {"artifact", "blueprint", "host", "ops", "stats"},
    "tolaria": {"blueprint", "host", "kasmina"},  # kasmina: the model is in the training process
    "tamiyo": {"records", "stats"},
    "emrakul": {"records", "stats"},
    "simic": {"records"},
    "nissa": {"blueprint", "records"},
}
# The composition root and what is above it import everything; nothing below imports them.
ROOTS = {"runtime", "cli", "loops", "__main__.py", "__init__.py"}

# Third-party packages with keepers: who may import them. Files end in .py, packages do not.
KEEPERS: dict[str, set[str]] = {
    "triton": {"kernels_triton", "tezzeret", "ops/backends.py", "runtime/doctor.py"},
    "sqlalchemy": {"urza"},
    "obstore": {"urza"},
    "nats": {"oona"},
    "grpc": {"rpc", "api", "runtime", "service.py"},
    "torch_geometric": {"tamiyo", "simic"},
    "cryptography": {"artifact"},
    "prometheus_client": {"nissa"},
    "protovalidate": {"rpc", "api"},
    "rich": {"runtime"},
    "lightning": {"loops"},
    "pytorch_lightning": {"loops"},
    "transformers": {"loops"},
    "accelerate": {"loops"},
    "yaml": {"cli"},
}


@dataclass(frozen=True)
class Import:
    """`source` imports `module`, when it is loaded or later in a function."""

    source: Path  # below esper/ or kernels_triton/
    module: str
    at_load: bool

    @property
    def package(self) -> str:
        return self.source.parts[0]


def imports() -> list[Import]:
    return [
        found
        for root in ("esper", "kernels_triton")
        for path in sorted((ROOT / root).rglob("*.py"))
        for found in imports_of(path, path.relative_to(ROOT / root) if root == "esper" else path.relative_to(ROOT))
    ]


def imports_of(path: Path, source: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text())
    top = {id(node) for node in _outside_functions(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(source, name.name, id(node) in top) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source} imports relatively"
            names = [f"esper.{n.name}" for n in node.names] if node.module == "esper" else [node.module or ""]
            yield from (Import(source, name, id(node) in top) for name in names)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _outside_functions(child)


IMPORTS = imports()


def _target(module: str) -> str:
    """The package of esper that a module is in, as MAY_IMPORT names it."""
    name = module.split(".")[1]
    return f"{name}.py" if (ROOT / "esper" / f"{name}.py").exists() else name


def _named(target: str) -> str:
    return target.removesuffix(".py")


def test_every_package_has_a_row():
    packages = {path.name for path in (ROOT / "esper").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert packages - {"__pycache__", "py.typed"} - ROOTS == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_its_row_allows(package):
    allowed = COMMON | MAY_IMPORT[package] | {_named(package)}
    wrong = [
        f"{found.source} imports {found.module}"
        for found in IMPORTS
        if found.package == package
        and found.module.startswith("esper.")
        and _named(_target(found.module)) not in allowed | SHELLS.get(found.source.name, set())
    ]
    assert wrong == []


def test_rows_allow_nothing_that_is_not_used():
    used: dict[str, set[str]] = {package: set() for package in MAY_IMPORT}
    for found in IMPORTS:
        if found.module.startswith("esper.") and found.package in used:
            used[found.package].add(_named(_target(found.module)))
    assert {package: row - used[package] for package, row in MAY_IMPORT.items() if row - used[package]} == {}


@pytest.mark.parametrize("library", KEEPERS)
def test_a_kept_library_is_imported_by_its_keepers_only(library):
    keepers = KEEPERS[library]
    wrong = [
        str(found.source)
        for found in IMPORTS
        if found.module.split(".")[0] == library and not keepers & {found.package, found.source.name, str(found.source)}
    ]
    assert wrong == []


def test_kernels_import_torch_and_triton_only():
    modules = {found.module.split(".")[0] for found in IMPORTS if found.package == "kernels_triton"}
    assert modules - sys.stdlib_module_names <= {"torch", "triton", "kernels_triton"}


def test_no_file_has_a_name_that_says_nothing():
    names = {path.name for path in (ROOT / "esper").rglob("*.py")}
    assert names & {"utils.py", "helpers.py", "manager.py", "base.py", "common.py", "misc.py"} == set()


def test_importing_esper_loads_no_transport_no_database_no_compiler():
    heavy = ["grpc", "nats", "sqlalchemy", "triton", "lightning", "transformers"]
    code = f"import sys, esper; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["os.environ", "os.getenv", "time.time(", "datetime.now("])
def test_no_core_reads_the_environment_or_the_clock(name):
    """Components take both as arguments. Wall time of one's own work (perf_counter) is no decision's input."""
    shells = {"service.py", "worker.py"}
    components = set(MAY_IMPORT) - {"ops", "rpc", "oona", "errors.py", "api", "records.py"}
    excused = {
        "urabrask/jail.py",  # the environment of a child it confines
        "tezzeret/interpreted.py",  # the environment of a child that interprets
        "tezzeret/timed.py",  # and of one that times
    }
    wrong = [
        str(path.relative_to(ROOT / "esper"))
        for component in components
        for path in sorted((ROOT / "esper" / component).rglob("*.py"))
        if path.name not in shells and name in path.read_text() and str(path.relative_to(ROOT / "esper")) not in excused
    ]
    assert wrong == []
