"""Check a message against the rules in its proto; the one place protovalidate is called for requests."""

from typing import Any

import protovalidate
from google.protobuf.message import Message

from esper import errors

_LONGEST_TEXT = 64  # characters of a value that an error repeats


def validate(message: Message, prefix: str = "") -> None:
    """Raise InvalidRequest with one entry in `fields` per violated field, its path below `prefix`."""
    violations = protovalidate.collect_violations(message)
    if not violations:
        return
    fields: dict[str, str] = {}
    for violation in violations:
        path = prefix + field_path(violation.proto.field)
        words = (violation.proto.message or violation.proto.rule_id) + _got(violation)
        fields[path] = f"{fields[path]}; {words}" if path in fields else words
    name = message.DESCRIPTOR.name
    raise errors.InvalidRequest(f"{name}: " + "; ".join(f"{path} {words}" for path, words in fields.items()), fields)


def _got(violation: protovalidate.Violation) -> str:
    """The value that broke a rule, where it is one and not a message or a list; a long text is shortened."""
    value = violation.field_value
    if violation.proto.rule_id == "required" or isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return ""
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f", got {value[:_LONGEST_TEXT]!r}... of {len(value)} characters"
    return f", got {value!r}"


def field_path(path: Any) -> str:
    """`path`, a buf.validate.FieldPath, as people write it: `signals[3].site`, `attributes["bias"].value`."""
    text = ""
    for element in path.elements if path is not None else ():
        text += ("." if text else "") + element.field_name
        if element.subscript is not None:
            key = element.subscript.value
            text += f'["{key}"]' if isinstance(key, str) else f"[{key}]"
    return text
