"""The columns of the interfaces that are searched, kept in memory and brought up to the store at each search.

A search reads those kernels of its interface that changed since the search before it, which
the store finds by index, and ranks in memory. The first search at an interface reads them
all. Whatever process wrote a change, the next search sees it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Collection

from esper.urza.codec import InterfaceKey, Scope, Wish
from esper.urza.columns import Columns
from esper.urza.pedigree import Members, Pedigree
from esper.urza.reader import Reader
from esper.urza.search import Ranked, rank, unmeasured

# Of all tables together; about 200 bytes each. Beyond it the interface searched longest ago is let go.
MAX_ROWS = 500_000
_BATCH = 5_000


class SearchTables:
    """One per library; belongs to one event loop."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self._max_rows = max_rows
        self._tables: OrderedDict[InterfaceKey, Columns] = OrderedDict()
        self.pedigree = Pedigree()
        # Held while a table changes. A search takes it before its transaction sees the store, so a
        # table is never ahead of the state that a search is about.
        self.lock = asyncio.Lock()

    async def rank(self, reader: Reader, scope: Scope, wish: Wish, families: Collection[Members]) -> list[Ranked]:
        """`search.rank` of the state that `reader` sees. The caller holds `lock`."""
        table = self._tables.setdefault(scope.interface, Columns())
        self._tables.move_to_end(scope.interface)
        while changed := await reader.changed_kernels(scope.interface, table.revision, _BATCH):
            table.put([candidate for _, candidate in changed])
            table.revision = changed[-1][0]
            if len(changed) < _BATCH:
                break
        found = rank(table, scope, wish, families)
        while len(self._tables) > 1 and sum(map(len, self._tables.values())) > self._max_rows:
            self._tables.popitem(last=False)
        return found

    def unmeasured(self, scope: Scope, wish: Wish, families: Collection[Members]) -> str:
        """`search.unmeasured` of the state that the latest `rank` at this interface saw. The caller holds `lock`."""
        return unmeasured(self._tables[scope.interface], scope, wish, families)
