"""Pages: every entry once, in order, and no token of another list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper import errors
from esper.api.common.v1.resource_pb2 import PageRequest
from esper.rpc.paging import identity, page, read_token, size_of, write_token

OF = identity("List", "conv")


def walk(entries, size, of=OF):
    token, pages = "", []
    while True:
        found, reply = page(entries, PageRequest(size=size, token=token), of, str)
        pages.append(list(found))
        if not reply.next_token:
            return pages
        token = reply.next_token


@given(entries=st.lists(st.integers(), unique=True, max_size=60), size=st.integers(1, 7))
def test_pages_make_up_the_list(entries, size):
    pages = walk(entries, size)
    assert [entry for found in pages for entry in found] == entries
    assert all(len(found) == size for found in pages[:-1])


def test_an_empty_size_is_a_hundred_and_too_much_is_refused():
    assert len(walk(range(250), 0)) == 3
    with pytest.raises(errors.InvalidRequest, match="1001"):
        size_of(PageRequest(size=1001))


@given(position=st.text(max_size=64), other=st.text(max_size=20))
def test_a_token_belongs_to_its_list(position, other):
    token = PageRequest(token=write_token(position, OF))
    assert read_token(token, OF) == position
    with pytest.raises(errors.InvalidRequest, match="not issued for this list"):
        read_token(token, identity("List", "conv", other))


@given(token=st.text(min_size=1, max_size=60))
def test_a_made_up_token_is_invalid_and_never_an_error_of_ours(token):
    with pytest.raises(errors.InvalidRequest) as caught:
        read_token(PageRequest(token=token), OF)
    assert list(caught.value.fields) == ["page.token"]


def test_identity_does_not_run_its_parts_together():
    assert identity("a", "bc") != identity("ab", "c")
    assert identity("1") != identity(1)


def test_an_entry_that_was_removed_ends_the_list():
    _, reply = page([1, 2, 3], PageRequest(size=1), OF, str)
    found, rest = page([2, 3], PageRequest(size=1, token=reply.next_token), OF, str)
    assert (list(found), rest.next_token) == ([], "")
