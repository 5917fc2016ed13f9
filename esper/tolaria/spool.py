"""Snapshot files of one run: kept while something needs them, and until a later checkpoint cannot need them either."""

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from esper.errors import Exhausted


class Spool:
    """A folder of files counted by use, at most `max_bytes`.

    A file whose last use is over is given out for deletion by the second `sweep` after that:
    a run that resumes from the checkpoint in between may still want it. Sizes are remembered,
    so that only the first look, of a run that goes on, and the end touch the disk.
    """

    def __init__(self, folder: Path, *, max_bytes: int = 4 << 30) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._uses: Counter[Path] = Counter()
        self._trash: list[set[Path]] = [set(), set()]
        folder.mkdir(parents=True, exist_ok=True)
        self.sizes = {path: path.stat().st_size for path in folder.iterdir() if path.is_file()}

    @property
    def used_bytes(self) -> int:
        """Of all files that are not deleted yet."""
        return sum(self.sizes.values())

    def reserve(self, name: str, size_bytes: int) -> Path:
        """Where a new file of this name and size goes; its first use is counted.

        Raises Exhausted where it does not fit within the bound.
        """
        used = self.used_bytes
        if used + size_bytes > self.max_bytes:
            raise Exhausted(
                f"the snapshot spool {self.folder} holds {used} bytes of {self.max_bytes} and {size_bytes} more do not "
                "fit: the nursery is behind; give it more workers, or validate less often"
            )
        path = self.folder / name
        return self.hold(path, size_bytes)

    def hold(self, path: Path, size_bytes: int = 0) -> Path:
        """Count one more use. `size_bytes`: of a file that is new here."""
        self.sizes.setdefault(path, size_bytes)
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

    def sweep(self) -> set[Path]:
        """A checkpoint was taken: what was out of use at the one before is to be deleted, off the training thread."""
        gone = self._trash[1] - self._uses.keys()
        self._trash = [set(), self._trash[0]]
        for path in gone:
            self.sizes.pop(path, None)
        return gone

    def discard(self, path: Path) -> None:
        """A file that came unasked for: it goes, unless something uses it."""
        if path not in self._uses:
            self._trash[0].add(path)

    def close(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def delete(paths: Iterable[Path]) -> None:
    """Delete files; those that were never written are passed over."""
    for path in paths:
        path.unlink(missing_ok=True)
