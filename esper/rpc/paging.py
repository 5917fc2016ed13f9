"""Pages of a list. A token says where the next page starts and which list it is of.

A list's identity is whatever decides its entries and their order: the method and its
filters. A token of another list is refused, so that nobody reads half of two lists.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from esper import errors
from esper.api.common.v1 import resource_pb2

T = TypeVar("T")

DEFAULT_SIZE = 100
MAX_SIZE = 1000
_DIGEST_BYTES = 8


def identity(*parts: object) -> str:
    """The identity of a list, e.g. `identity("ListOperations", request.kind)`."""
    return "\0".join(repr(part) for part in parts)


def size_of(request: resource_pb2.PageRequest) -> int:
    """Entries wanted on the page, 1 to 1,000."""
    if request.size > MAX_SIZE:
        raise errors.InvalidRequest(
            f"page.size is {request.size}, at most {MAX_SIZE} are sent", {"page.size": f"at most {MAX_SIZE}"}
        )
    return request.size or DEFAULT_SIZE


def write_token(position: str, of: str) -> str:
    """A token for the entries after `position` in the list `of`. `position` has at most 256 characters."""
    raw = position.encode()
    return base64.urlsafe_b64encode(_digest(raw, of) + raw).decode().rstrip("=")


def read_token(request: resource_pb2.PageRequest, of: str) -> str | None:
    """The position after which the page starts; None for the first page.

    Raises InvalidRequest for a token that was not issued for the list `of`.
    """
    if not request.token:
        return None
    try:
        raw = base64.b64decode(request.token + "=" * (-len(request.token) % 4), altchars=b"-_", validate=True)
        digest, position = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
        if digest == _digest(position, of):
            return position.decode()
    except (binascii.Error, ValueError):
        pass  # refused below, with all other foreign tokens
    raise errors.InvalidRequest(
        f"page.token {request.token[:32]!r} was not issued for this list; start again with an empty token",
        {"page.token": "not issued for this list"},
    )


def page(
    entries: Iterable[T], request: resource_pb2.PageRequest, of: str, position: Callable[[T], str]
) -> tuple[Sequence[T], resource_pb2.PageReply]:
    """The asked-for page of `entries`, which are in order; `position` names an entry uniquely and for good.

    An entry that was removed since its token was issued ends the list: the page is empty.
    """
    after, size = read_token(request, of), size_of(request)
    rest = iter(entries)
    if after is not None:
        for entry in rest:
            if position(entry) == after:
                break
    found: list[T] = []
    for entry in rest:
        if len(found) == size:
            return found, resource_pb2.PageReply(next_token=write_token(position(found[-1]), of))
        found.append(entry)
    return found, resource_pb2.PageReply()


def _digest(position: bytes, of: str) -> bytes:
    return hashlib.blake2b(position, key=hashlib.sha256(of.encode()).digest(), digest_size=_DIGEST_BYTES).digest()
