"""Any event at all: every kind, every field, numbers that are not finite, words that break lines."""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

from esper.api.nissa.v1 import observability_pb2 as pb

from .scenario import RUN, moved, seed

KINDS = [field.name for field in pb.RunEvent.DESCRIPTOR.oneofs_by_name["event"].fields]
_TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=8) | st.sampled_from(
    ["\n", "\u2028", "</script>"]
)
_SCALARS = {
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(0, 20),
}


@st.composite
def filled(draw, message, depth: int = 4):
    """`message` with about half of its fields set, to anything of their type."""
    for field in message.DESCRIPTOR.fields:
        if not draw(st.booleans()):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(draw, getattr(message, field.name), field.message_type)
        elif field.message_type is not None:
            _fill_message(draw, message, field, depth)
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=3)))
        else:
            setattr(message, field.name, draw(_scalar(field)))
    return message


def _scalar(field):
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=4)
    return _TEXT if field.type == FieldDescriptor.TYPE_STRING else _SCALARS[field.cpp_type]


def _fill_map(draw, values, entry):
    key, value = entry.fields
    values.update(draw(st.dictionaries(_scalar(key), _scalar(value), max_size=2)))


def _fill_message(draw, message, field, depth):
    if field.message_type.full_name == Timestamp.DESCRIPTOR.full_name or depth == 0:
        return
    if field.is_repeated:
        for _ in range(draw(st.integers(0, 2))):
            draw(filled(getattr(message, field.name).add(), depth=depth - 1))
    else:
        getattr(message, field.name).SetInParent()
        draw(filled(getattr(message, field.name), depth=depth - 1))


@st.composite
def events(draw, kinds=tuple(KINDS)):
    """One event of any kind."""
    event = pb.RunEvent(run_id=RUN, time=Timestamp(seconds=draw(st.integers(0, 4_000_000_000))))
    kind = draw(st.sampled_from(kinds))
    getattr(event, kind).SetInParent()
    draw(filled(getattr(event, kind)))
    return event


@st.composite
def lives(draw):
    """Events of three seeds' lives that the lifecycle allows, as far as fossils go, with rollbacks between them."""
    ends = {9: [10, 12], 10: [1], 12: [1], 1: [2], 2: [5], 5: [9, 10, 12]}
    names = {1: "DORMANT", 2: "GERMINATED", 5: "GRAFTING", 9: "FOSSILIZED", 10: "CULLED", 12: "ROLLED_BACK"}
    at, step, found = dict.fromkeys(range(3), 1), 0, []
    for _ in range(draw(st.integers(0, 25))):
        step += draw(st.integers(1, 5))
        slot = draw(st.integers(0, 2))
        to = draw(st.sampled_from(ends[at[slot]]))
        transition = moved(names[at[slot]], names[to], step, seed("fc1", slot))
        at[slot] = to
        found.append(pb.RunEvent(run_id=RUN, transition=transition))
    return found
