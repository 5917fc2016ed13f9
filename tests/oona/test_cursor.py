"""Own cursors: what was applied is skipped, what was not is not, and a crash loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper import errors
from esper.oona.cursor import Cursor, CursorState, FileCursorStore, MemoryCursorStore
from esper.oona.port import Delivery, Envelope


def delivery(sequence, index=0, count=1, key=None):
    return Delivery(sequence, Envelope(id=key or f"e{sequence}.{index}"), index, count)


class Effects:
    def __init__(self, fail_at=None):
        self.ids = []
        self.fail_at = fail_at

    async def __call__(self, envelope):
        if envelope.id == self.fail_at:
            raise OSError("disk")
        self.ids.append(envelope.id)


class Counting(MemoryCursorStore):
    def __init__(self):
        super().__init__()
        self.saves = 0

    async def save(self, key, state):
        self.saves += 1
        await super().save(key, state)


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=12),
    crashes=st.lists(st.integers(0, 20), max_size=5),
)
async def test_redelivered_from_its_own_position_everything_is_applied_once(counts, crashes):
    """Messages of several envelopes, a consumer that stops after some, and comes back."""
    stream = [
        delivery(sequence, index, count) for sequence, count in enumerate(counts, start=1) for index in range(count)
    ]
    store, effects = MemoryCursorStore(), Effects()
    for stop_after in [*crashes, len(stream)]:
        cursor = await Cursor.open(store, "k", remember=1)
        for one in [d for d in stream if d.sequence > cursor.after_sequence][:stop_after]:
            await cursor.apply(one, effects)
    assert effects.ids == [d.envelope.id for d in stream]


async def test_a_repeat_with_a_sequence_of_its_own_is_told_by_its_id_also_after_a_restart():
    store, effects = MemoryCursorStore(), Effects()
    cursor = await Cursor.open(store, "k")
    assert await cursor.apply(delivery(1, key="a"), effects)
    cursor = await Cursor.open(store, "k")
    assert not await cursor.apply(delivery(2, key="a"), effects)
    assert cursor.after_sequence == 2
    assert effects.ids == ["a"]


async def test_what_failed_was_not_applied_and_comes_again():
    store = MemoryCursorStore()
    cursor = await Cursor.open(store, "k")
    await cursor.apply(delivery(1), Effects())
    with pytest.raises(OSError, match="disk"):
        await cursor.apply(delivery(2), Effects(fail_at="e2.0"))
    again = await Cursor.open(store, "k")
    assert again.after_sequence == 1
    assert await again.apply(delivery(2), Effects())


async def test_only_the_last_ids_are_kept():
    cursor = await Cursor.open(MemoryCursorStore(), "k", remember=3)
    for sequence in range(1, 10):
        await cursor.apply(delivery(sequence), Effects())
    assert cursor.state.recent == ("e7.0", "e8.0", "e9.0")


async def test_a_consumer_may_save_in_its_own_transaction():
    cursor = await Cursor.open(MemoryCursorStore(), "k")
    one = delivery(5, index=1, count=3)
    assert not cursor.seen(one)
    state = cursor.advanced(one)
    assert not cursor.seen(one)
    cursor.move(state)
    assert cursor.seen(one)
    assert cursor.after_sequence == 4
    assert cursor.advanced(delivery(2)).sequence == 5


async def test_saves_may_be_spared_and_made_up_for():
    store = Counting()
    cursor = await Cursor.open(store, "k", save_every=10)
    for sequence in range(1, 26):
        await cursor.apply(delivery(sequence), Effects())
    assert store.saves == 2
    await cursor.save()
    await cursor.save()
    assert store.saves == 3
    assert (await Cursor.open(store, "k")).after_sequence == 25


@pytest.mark.parametrize("options", [{"remember": 0}, {"save_every": 0}])
async def test_bounds_of_a_cursor(options):
    with pytest.raises(errors.InvalidRequest):
        await Cursor.open(MemoryCursorStore(), "k", **options)


async def test_a_file_keeps_a_cursor_whole(tmp_path):
    store = FileCursorStore(tmp_path / "cursors")
    assert await store.load("nissa/all events") is None
    state = CursorState(7, 1, 3, ("a", "b"))
    await store.save("nissa/all events", state)
    await store.save("other", CursorState(1))
    assert await FileCursorStore(tmp_path / "cursors").load("nissa/all events") == state
    assert sorted(p.suffix for p in (tmp_path / "cursors").iterdir()) == [".json", ".json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sequence": 1}'])
async def test_a_broken_file_is_named_and_not_taken_for_none(tmp_path, text):
    store = FileCursorStore(tmp_path)
    await store.save("k", CursorState(7))
    (tmp_path / "k.json").write_text(text)
    with pytest.raises(errors.Corrupt, match=r"k\.json"):
        await store.load("k")
