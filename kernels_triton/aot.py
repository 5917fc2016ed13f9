"""Every op's kernels compiled ahead of time, for launchers that have no Triton.

    python -m kernels_triton.aot --targets sm_80,sm_90,sm_100,gfx942 --out DIR

writes for every specialisation of every op, below DIR/<target>/,

    <name>.cubin, <name>.ptx      machine code and assembly; .hsaco and .amdgcn for AMD
    <name>.json                   parameters in their order, alignments, warps, shared memory, versions, digests

and DIR/SHA256SUMS, which `sha256sum -c` reads. The same sources, Triton and targets give the same bytes wherever they
lie. No GPU is needed.
"""

import argparse
import hashlib
import importlib
import json
import pkgutil
import sys
from fnmatch import fnmatch
from pathlib import Path

import kernels_triton
from kernels_triton.compilation import TARGETS, compile_for
from kernels_triton.specialisation import Specialisation

DIGESTS = "SHA256SUMS"


def ops() -> dict[str, list[Specialisation]]:
    """Op file -> what it compiles: every module of this package that has `specialisations`."""
    names = sorted(module.name for module in pkgutil.iter_modules(kernels_triton.__path__))
    modules = {name: importlib.import_module(f"kernels_triton.{name}") for name in names if name != "aot"}
    return {name: module.specialisations() for name, module in modules.items() if hasattr(module, "specialisations")}


def compile_all(targets: list[str], pattern: str = "*") -> dict[str, bytes]:
    """Path below DIR -> bytes, of the specialisations whose names match `pattern`."""
    files: dict[str, bytes] = {}
    for op, specs in ops().items():
        for spec in (s for s in specs if fnmatch(s.name, pattern)):
            for target in targets:
                made = one(op, spec, target)
                if taken := files.keys() & made.keys():
                    raise ValueError(f"two specialisations are named {spec.name}: both would write {sorted(taken)[0]}")
                files |= made
    return files


def one(op: str, spec: Specialisation, target: str) -> dict[str, bytes]:
    """The files of one specialisation for one target."""
    compiled = compile_for(spec, target)
    files = {f"{spec.name}.{suffix}": data for suffix, data in compiled.files.items()}
    metadata = {"op": op, **compiled.metadata, "sha256": {name: digest(data) for name, data in files.items()}}
    files[f"{spec.name}.json"] = (json.dumps(metadata, indent=1) + "\n").encode()
    return {f"{target}/{name}": data for name, data in files.items()}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def why_not_into(out: Path) -> str:
    """Why files may not be written there: it holds what no earlier run wrote. Empty where they may."""
    if out.exists() and not out.is_dir():
        return f"{out} is a file; --out takes a directory"
    foreign = sorted(str(p.relative_to(out)) for p in out.rglob("*") if not p.is_dir())
    foreign = [path for path in foreign if path not in {DIGESTS, *listed(out)}]
    if not foreign:
        return ""
    return f"{out} holds {len(foreign)} files of no earlier run ({foreign[0]}, ...): choose an empty directory"


def listed(out: Path) -> list[str]:
    """Paths that an earlier run wrote below `out`."""
    sums = out / DIGESTS
    return [line.partition("  ")[2] for line in sums.read_text().splitlines()] if sums.exists() else []


def write(out: Path, files: dict[str, bytes]) -> None:
    """Replace what an earlier run wrote. The list goes first: a run cut short leaves no file that it does not name."""
    sums = {path: digest(data) for path, data in sorted(files.items())}
    stale = set(listed(out)) - set(files)
    for path in stale:
        (out / path).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / DIGESTS).write_text("".join(f"{value}  {path}\n" for path, value in sums.items()))
    for path, data in files.items():
        (out / path).parent.mkdir(exist_ok=True)
        (out / path).write_bytes(data)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels_triton.aot", description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help=f"comma-separated, of {', '.join(TARGETS)}")
    parser.add_argument("--out", type=Path, required=True, help="directory: empty, or written by an earlier run")
    parser.add_argument("--kernels", default="*", help="only specialisations whose names match, as blend_forward_*")
    chosen = parser.parse_args(arguments)
    targets = chosen.targets.split(",")
    if unknown := [target for target in targets if target not in TARGETS]:
        parser.error(f"unknown target {', '.join(map(repr, unknown))}; known: {', '.join(TARGETS)}")
    if reason := why_not_into(chosen.out):
        parser.error(reason)
    files = compile_all(list(dict.fromkeys(targets)), chosen.kernels)
    if not files:
        parser.error(f"no specialisation is named like {chosen.kernels!r}")
    write(chosen.out, files)
    kernels = sum(path.endswith(".json") for path in files)
    print(f"{kernels} kernels, {sum(map(len, files.values())) / 1e6:.1f} MB in {chosen.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
