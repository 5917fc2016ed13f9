"""Snapshot files of one run: kept while something needs them, and until a later checkpoint cannot need them either."""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from esper.errors import Exhausted


class Spool:
    """A folder of files counted by use, at most `max_bytes`.

    A file whose last use is over is deleted by the second `sweep` after that: a run that
    resumes from the checkpoint in between may still want it.
    """

    def __init__(self, folder: Path, *, max_bytes: int = 4 << 30) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._uses: Counter[Path] = Counter()
        self._unwritten: dict[Path, int] = {}  # sizes of files that another thread is to write
        self._trash: list[set[Path]] = [set(), set()]
        folder.mkdir(parents=True, exist_ok=True)

    def reserve(self, name: str, size_bytes: int) -> Path:
        """Where a new file of this name and size goes; its first use is counted.

        Raises Exhausted where it does not fit within the bound.
        """
        used = self._used()
        if used + size_bytes > self.max_bytes:
            raise Exhausted(
                f"the snapshot spool {self.folder} holds {used} bytes of {self.max_bytes} and {size_bytes} more do not "
                "fit: the nursery is behind; give it more workers, or validate less often"
            )
        path = self.folder / name
        self._unwritten[path] = size_bytes
        return self.hold(path)

    def hold(self, path: Path) -> Path:
        """Count one more use."""
        self._uses[path] += 1
        return path

    def release(self, path: Path) -> None:
        """Count one use less."""
        self._uses[path] -= 1
        if self._uses[path] <= 0:
            del self._uses[path]
            self._trash[0].add(path)

    def recount(self, paths: Iterable[Path]) -> None:
        """After a restore: these uses and no others."""
        self._uses = Counter(paths)

    def sweep(self) -> None:
        """A checkpoint was taken: delete what was out of use at the one before."""
        for path in self._trash[1] - self._uses.keys():
            path.unlink(missing_ok=True)
        self._trash = [set(), self._trash[0]]

    def discard(self, path: Path) -> None:
        """A file that came unasked for: it goes, unless something uses it."""
        if path not in self._uses:
            self._trash[0].add(path)

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _used(self) -> int:
        """Bytes on disk and bytes to come."""
        sizes = {p: p.stat().st_size for p in self.folder.iterdir() if p.is_file()}
        self._unwritten = {p: size for p, size in self._unwritten.items() if p not in sizes and p in self._uses}
        return sum(sizes.values()) + sum(self._unwritten.values())
