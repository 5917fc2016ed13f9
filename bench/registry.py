"""The benches there are: every bench/<group>/bench_<name>.py with a `rows(options)`."""

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import QUICK, Effort
from bench.row import Row


@dataclass(frozen=True, slots=True)
class Options:
    """What a bench was asked for; one that has no use for a field passes it over."""

    quick: bool = False  # least effort: shows that it runs, its numbers are not to be used
    gpu: bool = False
    tasks: Sequence[str] = ()  # of `growth` and `verdict`; (): all
    seeds: int = 5  # of the same
    services: bool = False  # of `growth`

    def effort(self, full: Effort = Effort()) -> Effort:  # noqa: B008  frozen
        return QUICK if self.quick else full

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"


@dataclass(frozen=True, slots=True)
class Bench:
    """A bench module's parts; its GPU and LONG are False where it does not say."""

    name: str
    about: str
    rows: Callable[[Options], Iterator[Row]]
    gpu: bool  # it runs on one with `--gpu`
    long: bool  # it takes so long that it must be named


class UnknownBench(LookupError):
    """There is no bench of that name; the message lists those there are."""


def names() -> list[str]:
    return sorted(_files())


def gpu_names() -> list[str]:
    """Those that use a GPU and need not be named. Read, not imported: such a machine may lack what others need."""
    says = {name: set(re.findall(r"^(GPU|LONG) = True\b", path.read_text(), re.M)) for name, path in _files().items()}
    return sorted(name for name, said in says.items() if said == {"GPU"})


def load(name: str) -> Bench:
    """The bench of a name, e.g. "demo-overhead". Raises UnknownBench."""
    files = _files()
    if name not in files:
        raise UnknownBench(f"no bench {name!r}; there are {', '.join(sorted(files))}")
    path = files[name]
    module = importlib.import_module(f"bench.{path.parent.name}.{path.stem}")
    about = (module.__doc__ or "").partition("\n")[0]
    return Bench(name, about, module.rows, getattr(module, "GPU", False), getattr(module, "LONG", False))


def _files() -> dict[str, Path]:
    found = Path(__file__).parent.glob("*/bench_*.py")
    return {path.stem.removeprefix("bench_").replace("_", "-"): path for path in found}
