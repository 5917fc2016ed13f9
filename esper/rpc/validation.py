"""Check a message against the rules in its proto; the one place protovalidate is called for requests."""

from typing import Any

import protovalidate
from google.protobuf.message import Message

from esper import errors


def validate(message: Message, prefix: str = "") -> None:
    """Raise InvalidRequest with one entry in `fields` per violated field, its path below `prefix`."""
    violations = protovalidate.collect_violations(message)
    if not violations:
        return
    fields: dict[str, str] = {}
    for violation in violations:
        path = prefix + field_path(violation.proto.field)
        words = violation.proto.message or violation.proto.rule_id
        fields[path] = f"{fields[path]}; {words}" if path in fields else words
    name = message.DESCRIPTOR.name
    raise errors.InvalidRequest(f"{name}: " + "; ".join(f"{path} {words}" for path, words in fields.items()), fields)


def field_path(path: Any) -> str:
    """`path`, a buf.validate.FieldPath, as people write it: `signals[3].site`, `attributes["bias"].value`."""
    text = ""
    for element in path.elements if path is not None else ():
        text += ("." if text else "") + element.field_name
        if element.subscript is not None:
            key = element.subscript.value
            text += f'["{key}"]' if isinstance(key, str) else f"[{key}]"
    return text
