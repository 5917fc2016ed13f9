"""Pages of the library's lists: where one starts, how long it is, what comes after.

A list is walked by revision, which never changes for an entry, so entries that are added
between two pages neither shift nor repeat those of the next.
"""

from collections.abc import Callable
from dataclasses import dataclass

from esper.api.common.v1.resource_pb2 import PageReply, PageRequest
from esper.errors import InvalidRequest
from esper.urza.ledger import canonical_json

DEFAULT_SIZE = 100
MAX_SIZE = 1000


@dataclass(frozen=True, slots=True)
class Pages:
    """How tokens are written and read; `esper.rpc.paging` has both functions."""

    # (position, list identity) -> token.
    write_token: Callable[[str, str], str]
    # (page request, list identity) -> position, None for the first page. Raises InvalidRequest for a foreign token.
    read_token: Callable[[PageRequest, str], str | None]

    def start(self, page: PageRequest, listing: str) -> int:
        """The revision the page starts beyond; 0 for the first page. Raises InvalidRequest."""
        position = self.read_token(page, listing)
        if position is None:
            return 0
        if not (position.isascii() and position.isdigit()):
            raise InvalidRequest("page.token was not issued for this list; start again with an empty token")
        return int(position)

    def reply(self, listing: str, last_revision: int, *, more: bool) -> PageReply:
        """Points behind the last entry sent, if more follow."""
        return PageReply(next_token=self.write_token(str(last_revision), listing) if more else "")


def size_of(page: PageRequest) -> int:
    """Entries wanted. Raises InvalidRequest for more than 1,000."""
    if page.size > MAX_SIZE:
        raise InvalidRequest(f"page.size is {page.size}, at most {MAX_SIZE}", {"page.size": f"at most {MAX_SIZE}"})
    return page.size or DEFAULT_SIZE


def listing(name: str, *filters: object) -> str:
    """What a token is bound to: the list and everything that decides its entries."""
    return f"urza.{name}" + canonical_json(filters)
