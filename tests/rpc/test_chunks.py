"""Chunk streams: whatever goes in comes out, and nothing else does."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper import errors
from esper.api.common.v1 import artifact_pb2
from esper.rpc import chunks as module
from esper.rpc.chunks import CHUNK_BYTES, receive, receive_files, send

ROOM = 1 << 30


async def replay(items):
    for item in items:
        yield item


async def sent(files):
    return [chunk async for chunk in send(files)]


async def received(items, **options):
    return await receive_files(replay(items), limit_bytes=options.pop("limit_bytes", ROOM), **options)


def header(data, file="w.safetensors", size=None):
    return artifact_pb2.Chunk(
        header=artifact_pb2.BlobHeader(
            file=file, digest=hashlib.sha256(data).hexdigest(), size_bytes=len(data) if size is None else size
        )
    )


def data(raw):
    return artifact_pb2.Chunk(data=raw)


names = st.from_regex(r"[a-z][a-z0-9_]{0,8}(/[a-z][a-z0-9.]{0,8})?", fullmatch=True)


@settings(max_examples=50, deadline=None)
@given(files=st.dictionaries(names, st.binary(max_size=5000), max_size=5))
async def test_files_come_back_as_they_were(files):
    assert await received(await sent(files)) == files


async def test_more_than_one_chunk_and_an_empty_file():
    files = {"a": b"x" * (2 * CHUNK_BYTES + 17), "empty": b"", "b": b"y" * CHUNK_BYTES}
    stream = await sent(files)
    assert [c.WhichOneof("part") for c in stream] == ["header", "data", "data", "data", "header", "header", "data"]
    assert max(len(c.data) for c in stream) == CHUNK_BYTES
    assert await received(stream) == files


async def test_a_path_is_sent_like_bytes(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"z" * 3000)
    assert await received(await sent({"w": path})) == {"w": b"z" * 3000}


async def test_a_file_that_changes_while_it_is_sent_is_not_passed_off_as_sound(tmp_path):
    path = tmp_path / "w"
    path.write_bytes(b"z" * 3000)
    stream = send({"w": path})
    await anext(stream)
    path.write_bytes(b"y" * 3000)
    with pytest.raises(errors.Corrupt, match="w: changed"):
        async for _ in stream:
            pass


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(min_size=1, max_size=300), where=st.integers(min_value=0), bit=st.integers(0, 7))
async def test_a_flipped_bit_is_refused_by_name(raw, where, bit):
    flipped = bytearray(raw)
    flipped[where % len(raw)] ^= 1 << bit
    with pytest.raises(errors.Corrupt, match=r"w\.safetensors: sha256"):
        await received([header(raw), data(bytes(flipped))])


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ([header(b"abc"), data(b"ab")], "ended 1 bytes short of 3"),
        ([header(b"abc")], "ended 3 bytes short"),
        ([header(b"abc"), data(b"ab"), header(b"q", "q")], r"w\.safetensors: the stream ended 1 bytes short"),
        ([header(b"abc"), data(b"abcd")], "1 bytes more than the 3 announced"),
        ([header(b"abc"), data(b"abc"), data(b"d")], "1 bytes more"),
        ([data(b"abc")], "begins with data"),
        ([artifact_pb2.Chunk()], "neither a header nor data"),
        ([header(b""), header(b"")], "announced twice"),
        ([header(b"x" * 10), data(b"x" * (CHUNK_BYTES + 1))], "at most 1048576"),
        ([header(b"", "../etc/passwd")], "not a plain relative path"),
        ([header(b"", "/etc/passwd")], "not a plain relative path"),
        ([header(b"", "a//b")], "not a plain relative path"),
        ([header(b"", "a\\b")], "not a plain relative path"),
        ([header(b"", ".")], "not a plain relative path"),
    ],
)
async def test_a_broken_stream_is_refused_in_the_callers_class(stream, words):
    with pytest.raises(errors.Corrupt, match=words):
        await received(stream)
    with pytest.raises(errors.InvalidRequest, match=words):
        await received(stream, refuse=errors.InvalidRequest)


async def test_the_limit_holds_for_all_files_and_before_the_bytes_arrive():
    with pytest.raises(errors.Exhausted, match="b: 6 bytes announced, 4 of 10 are left"):
        await received([header(b"x" * 6, "a"), data(b"x" * 6), header(b"y" * 6, "b")], limit_bytes=10)


async def test_too_many_files_are_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_FILES", 2)
    with pytest.raises(errors.Corrupt, match="more than 2 files"):
        await received([header(b"", name) for name in "abc"])


async def test_the_last_piece_comes_only_after_the_digest_was_checked():
    raw = b"x" * 10
    seen = []
    with pytest.raises(errors.Corrupt):
        async for piece in receive(replay([header(raw), data(raw[:5]), data(b"y" * 5)]), limit_bytes=ROOM):
            seen.append(piece)
    assert [piece.last for piece in seen] == [False]


async def test_a_bare_blob_has_no_name():
    assert await received([header(b"abc", ""), data(b"abc")]) == {"": b"abc"}
    with pytest.raises(errors.Corrupt, match=r"^blob: sha256"):
        await received([header(b"abc", ""), data(b"abd")])
