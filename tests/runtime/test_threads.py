"""Ranks that are threads say why they did not meet."""

import threading

import pytest

from tests.runtime.threads import NotMet, on_each, thread_ranks


def test_a_rank_that_does_not_come_is_shown_where_it_stands():
    gate = threading.Event()

    def stands_elsewhere(ranks) -> bytes:
        if ranks.first:
            try:
                return ranks.share(bytes)
            finally:
                gate.set()
        gate.wait()
        return b""

    with pytest.raises(NotMet, match=r"rank 0 of 2 waited .* given so far by ranks \[0\]") as caught:
        on_each(thread_ranks(2, limit_s=0.1), stands_elsewhere)
    assert "in stands_elsewhere" in str(caught.value)


def test_what_one_rank_raises_is_told_rather_than_that_the_others_waited():
    def fails(ranks) -> bytes:
        if not ranks.first:
            raise ZeroDivisionError("of rank 1")
        return ranks.share(bytes)

    with pytest.raises(ZeroDivisionError, match="of rank 1"):
        on_each(thread_ranks(2, limit_s=0.1), fails)
