"""Snapshot files live as long as something needs them, and until the checkpoint after next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.errors import Exhausted
from esper.tolaria.spool import Spool, delete


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool", max_bytes=100)


def sweep(spool):
    delete(spool.sweep())


def write(spool, name, size=10):
    path = spool.reserve(name, size)
    path.write_bytes(b"x" * size)
    return path


def test_a_file_goes_by_the_second_sweep_after_its_last_use(spool):
    path = write(spool, "a")
    spool.hold(path)
    spool.release(path)
    sweep(spool)
    sweep(spool)
    assert path.exists()  # one use is left
    spool.release(path)
    sweep(spool)
    assert path.exists()  # the checkpoint before this sweep may name it
    sweep(spool)
    assert not path.exists()


def test_a_file_that_is_used_again_in_time_stays(spool):
    path = write(spool, "a")
    spool.release(path)
    sweep(spool)
    spool.hold(path)
    sweep(spool)
    sweep(spool)
    assert path.exists()


def test_the_bound_counts_what_is_there_and_what_is_to_come(spool):
    write(spool, "a", 60)
    spool.reserve("b", 40)
    with pytest.raises(Exhausted, match=r"holds 100 bytes of 100 and 1 more do not fit: the nursery is behind"):
        spool.reserve("c", 1)


def test_a_file_that_is_never_written_frees_its_room(spool):
    path = spool.reserve("a", 90)
    spool.release(path)
    sweep(spool)
    sweep(spool)
    spool.reserve("b", 90)


def test_the_same_name_again_counts_once(spool):
    path = write(spool, "a", 60)
    spool.reserve("b", 30)
    (spool.folder / "b").write_bytes(b"y" * 30)
    assert path.exists()
    spool.reserve("c", 10)


def test_a_run_that_goes_on_counts_what_is_there(spool):
    write(spool, "a", 60)
    with pytest.raises(Exhausted, match="holds 60 bytes"):
        Spool(spool.folder, max_bytes=100).reserve("b", 50)


def test_after_a_restore_the_checkpoints_uses_count_and_no_others(spool):
    a, b = write(spool, "a"), write(spool, "b")
    spool.recount([a, a])
    spool.discard(b)
    spool.discard(a)
    sweep(spool)
    sweep(spool)
    assert a.exists() and not b.exists()
    spool.release(a)
    sweep(spool)
    sweep(spool)
    assert a.exists()
    spool.release(a)
    sweep(spool)
    sweep(spool)
    assert not a.exists()


def test_closing_leaves_no_folder(spool):
    write(spool, "a")
    spool.close()
    assert not spool.folder.exists()


@given(st.lists(st.tuples(st.sampled_from("hrs"), st.integers(0, 3)), max_size=60))
def test_a_file_in_use_is_never_deleted(tmp_path_factory, moves):
    spool = Spool(tmp_path_factory.mktemp("spool"))
    paths = [write(spool, f"file-{i}") for i in range(4)]
    uses = [1] * 4
    for move, index in moves:
        if move == "h" and uses[index]:
            spool.hold(paths[index])
            uses[index] += 1
        elif move == "r" and uses[index]:
            spool.release(paths[index])
            uses[index] -= 1
        elif move == "s":
            sweep(spool)
        assert all(path.exists() for path, count in zip(paths, uses, strict=True) if count)
    sweep(spool)
    sweep(spool)
    assert [path.exists() for path in paths] == [bool(count) for count in uses]
