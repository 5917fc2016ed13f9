"""What blueprints are and were made from, by id: graph, author, source, parents. It never changes, and is no run's."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from esper.api.urza.v1 import library_pb2
from esper.records import RecordLog

Pedigrees = Mapping[str, library_pb2.Blueprint]
NO_PEDIGREES: Pedigrees = MappingProxyType({})


class KnownPedigrees(Pedigrees):
    """Filled from the library's lineage of what fossilised; kept over restarts. Used from one thread."""

    def __init__(self, path: Path) -> None:
        self._log = RecordLog(path, library_pb2.Blueprint, lambda entry: entry.blueprint_id)
        self._known = {entry.blueprint_id: entry for entry in self._log.all()}

    def learn(self, lineage: Iterable[library_pb2.Blueprint]) -> None:
        """Remember the blueprints not met before. Raises Exhausted on a full disk.

        Ancestors come last in a lineage and are stored first, so that what is known of a blueprint is whole.
        """
        for entry in reversed(list(lineage)):
            if entry.blueprint_id not in self._known:
                facts = library_pb2.Blueprint(
                    blueprint_id=entry.blueprint_id,
                    graph=entry.graph,
                    parent_ids=entry.parent_ids,
                    title=entry.title,
                    family=entry.family,
                    author=entry.author,
                    source=entry.source,
                )
                self._log.append(facts)
                self._known[entry.blueprint_id] = facts

    def __getitem__(self, blueprint_id: str) -> library_pb2.Blueprint:
        return self._known[blueprint_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        self._log.close()
