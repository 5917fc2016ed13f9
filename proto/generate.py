"""Generate esper/api from proto/.   .venv-proto/bin/python proto/generate.py [--check]

Runs under the pinned tools of requirements/proto.txt (`make proto` installs them):
generated code refuses a runtime older than its generator, so the generator is an
old one and users may keep theirs.
"""

import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
OUT = Path("esper/api")


def generate(out: Path) -> list[Path]:
    """Write every generated file below `out`; returns their paths relative to it."""
    well_known = str(files("grpc_tools") / "_proto")
    include = [f"-I{PROTO}", f"-I{well_known}"]
    services = sorted(str(p) for p in PROTO.glob("esper/**/*.proto"))
    vendored = [str(PROTO / "buf/validate/validate.proto")]
    plugin = f"--plugin=protoc-gen-mypy={_beside('protoc-gen-mypy')}"
    grpc_plugin = f"--plugin=protoc-gen-mypy_grpc={_beside('protoc-gen-mypy_grpc')}"
    _run([*include, f"--python_out={out}", *vendored])
    _run([*include, f"--python_out={out}", f"--grpc_python_out={out}", *services])
    _run([*include, plugin, grpc_plugin, f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}", *services])
    _move_vendored(out)
    _drop_empty_services(out)
    for folder in {p.parent for p in (out / OUT).rglob("*.py")} | {out / OUT}:
        for package in (folder, *folder.parents):
            if package == out / OUT.parent:
                break
            (package / "__init__.py").touch()
    return sorted(p.relative_to(out) for p in (out / OUT).rglob("*") if p.suffix in (".py", ".pyi"))


def _run(arguments: list[str]) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit("protoc failed; see its output above")


def _beside(tool: str) -> Path:
    return Path(sys.executable).parent / tool


def _move_vendored(out: Path) -> None:
    """Keep the vendored package below esper.api: a top-level `buf` would clash with others'."""
    vendor = out / OUT / "vendor"
    vendor.mkdir(parents=True)
    shutil.move(str(out / "buf"), str(vendor / "buf"))
    for path in (out / OUT).rglob("*_pb2*.py"):
        text = path.read_text()
        moved = text.replace("from buf.validate import", "from esper.api.vendor.buf.validate import")
        if moved != text:
            path.write_text(moved)


def _drop_empty_services(out: Path) -> None:
    """protoc writes a _pb2_grpc.py for files without a service too; nobody imports those."""
    for path in (out / OUT).rglob("*_pb2_grpc.py"):
        if "Stub(object)" not in path.read_text():
            path.unlink()
            path.with_suffix(".pyi").unlink(missing_ok=True)


def stale() -> list[str]:
    """Paths whose committed text differs from what the protos produce now."""
    with tempfile.TemporaryDirectory() as tmp:
        made = {p: (Path(tmp) / p).read_text() for p in generate(Path(tmp))}
    committed = {p.relative_to(ROOT) for p in (ROOT / OUT).rglob("*") if p.suffix in (".py", ".pyi")}
    changed = {p for p, text in made.items() if not (ROOT / p).exists() or (ROOT / p).read_text() != text}
    return sorted(str(p) for p in changed | (committed - made.keys()))


def main() -> None:
    if "--check" in sys.argv:
        if old := stale():
            raise SystemExit("stale; run `make proto`:\n  " + "\n  ".join(old))
        return
    with tempfile.TemporaryDirectory() as tmp:
        generate(Path(tmp))
        shutil.rmtree(ROOT / OUT, ignore_errors=True)
        shutil.copytree(Path(tmp) / OUT, ROOT / OUT)


if __name__ == "__main__":
    main()
