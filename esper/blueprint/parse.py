"""Read a graph from the text that text.py shows. What is wrong is named with its line and column.

    blueprint [id], version 1        optional; the id is not read, it follows from what is below
      name  [size, ...]  initialiser
      name = operator(value or parameter, ...)  setting=value ...  -> size [pooled]
      return name

Lines may come in any order and `#` starts a comment. `-> size` may be left out; where it is written it must be right.
"""

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, TypeVar

from esper.blueprint.check import check
from esper.blueprint.ir import INPUT, VERSION, Attribute, Dimension, Graph, Initialiser, Node, Parameter
from esper.blueprint.operators import OPERATORS
from esper.blueprint.signature import Extent, Setting
from esper.errors import InvalidBlueprint

MAX_TEXT = 1 << 20  # characters
_HEAD = re.compile(r"blueprint(\s+[0-9a-f]+)?(\s*,)?(\s*version\s+(?P<version>[0-9]{1,9}))?\s*")
_TOKEN = re.compile(
    r"\s*(?P<text>->|[-+]?[0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?|[A-Za-z_][A-Za-z0-9_]*|[^\s])",
)
_WORD, _WHOLE = re.compile(r"[A-Za-z_]\w*"), re.compile(r"[0-9]+")
_Known = TypeVar("_Known")


class _Token(NamedTuple):
    text: str
    column: int  # counted from 1


def _fail(line: int, column: int, message: str) -> NoReturn:
    where = f"line {line}, column {column}"
    raise InvalidBlueprint(f"{where}: {message}", {where: message})


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'relu'?" or nothing."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


class _Line:
    """The tokens of one line, taken one after the other."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self._tokens = [_Token(found["text"], found.start("text") + 1) for found in _TOKEN.finditer(text)]
        self._end = len(text.rstrip()) + 1
        self._at = 0

    def peek(self) -> str:
        """The next token; empty at the end."""
        return self._tokens[self._at].text if self._at < len(self._tokens) else ""

    @property
    def column(self) -> int:
        return self._tokens[self._at].column if self._at < len(self._tokens) else self._end

    def take(self) -> _Token:
        if self._at == len(self._tokens):
            self.fail("the line ends here; more was expected")
        self._at += 1
        return self._tokens[self._at - 1]

    def want(self, mark: str) -> None:
        if self.peek() != mark:
            self.fail(f"{self.peek() or 'the end of the line'!r} where {mark!r} was expected")
        self._at += 1

    def word(self, what: str) -> _Token:
        if not _WORD.fullmatch(self.peek()):
            self.fail(f"{self.peek() or 'the end of the line'!r} where {what} was expected")
        return self.take()

    def whole(self, what: str) -> int:
        if not _WHOLE.fullmatch(self.peek()):
            self.fail(f"{self.peek() or 'the end of the line'!r} where {what} was expected")
        return int(self.take().text)

    def fail(self, message: str) -> NoReturn:
        _fail(self.number, self.column, message)

    def end(self) -> None:
        if self.peek():
            self.fail(f"{self.peek()!r} where the line should end")

    def separated(self, close: str, one: Callable[[], _Known]) -> list[_Known]:
        """Things between commas, up to `close`."""
        found: list[_Known] = []
        while self.peek() != close:
            if found:
                self.want(",")
            found.append(one())
        self.want(close)
        return found


@dataclass(slots=True)
class _Call:
    """A node as it is written: its arguments are not yet values or parameters."""

    line: int
    name: _Token
    operator: str
    arguments: list[_Token]
    attributes: list[tuple[str, Attribute]]
    result: tuple[int, Dimension, Extent] | None = None  # column, and what stands after the arrow


@dataclass(slots=True)
class _Draft:
    version: int = VERSION
    head: int = 1  # line that says the version
    calls: list[_Call] = field(default_factory=list)
    parameters: list[tuple[int, int, Parameter]] = field(default_factory=list)  # line, column
    output: tuple[int, _Token] | None = None


def parse(text: str) -> Graph:
    """The graph. Raises InvalidBlueprint with line, column, what is wrong and the nearest name that is known."""
    if len(text) > MAX_TEXT:
        raise InvalidBlueprint(f"the text has {len(text)} characters; at most {MAX_TEXT}")
    draft, count = _Draft(), 0
    for count, raw in enumerate(text.splitlines(), start=1):
        written = raw.partition("#")[0]
        if written.strip():
            _read(draft, written, count)
    if draft.output is None:
        _fail(count + 1, 1, "the text has no `return NAME`, which says what the graph's output is")
    return _graph(draft, *draft.output)


def _read(draft: _Draft, written: str, number: int) -> None:
    line = _Line(number, written)
    start = line.column
    name = line.word("a name")
    if name.text == "blueprint" and (head := _HEAD.fullmatch(written.strip())):
        draft.version, draft.head = int(head["version"] or VERSION), number
    elif name.text == "return" and line.peek() not in ("=", "["):
        if draft.output is not None:
            _fail(number, start, f"a second `return`; the first is on line {draft.output[0]}")
        draft.output = (number, line.word("the name of a node"))
        line.end()
    elif line.peek() == "=":
        draft.calls.append(_call(line, name))
    elif line.peek() == "[":
        draft.parameters.append((number, start, _parameter(line, name)))
    else:
        seen = line.peek() or "the end of the line"
        line.fail(f"{seen!r} after {name.text!r}; a parameter goes on with `[`, a node with `=`")


def _parameter(line: _Line, name: _Token) -> Parameter:
    line.want("[")
    shape = line.separated("]", lambda: _size(line))
    column, word = line.column, line.word("an initialiser")
    known = {one.value: one for one in Initialiser}
    if word.text not in known:
        _fail(
            line.number,
            column,
            f"initialiser {word.text!r} is unknown; known: {', '.join(known)}{nearest(word.text, known)}",
        )
    line.end()
    return Parameter(name.text, tuple(shape), known[word.text])


def _call(line: _Line, name: _Token) -> _Call:
    line.want("=")
    operator = line.word("an operator")
    row = OPERATORS.get(operator.text)
    line.want("(")
    arguments = line.separated(")", lambda: line.word("the name of a value or a parameter"))
    if row is None and (close := nearest(operator.text, OPERATORS)):
        _fail(line.number, operator.column, f"operator {operator.text!r} is unknown{close}")
    settings = {setting.name: setting for setting in row.settings} if row else {}
    attributes = []
    while line.peek() not in ("", "->"):
        key = line.word("a setting")
        if row and key.text not in settings:
            has = ", ".join(settings) or "none"
            message = f"{operator.text} has no setting {key.text!r}; it has {has}{nearest(key.text, settings)}"
            _fail(line.number, key.column, message)
        line.want("=")
        attributes.append((key.text, _value(line, settings.get(key.text))))
    call = _Call(line.number, name, operator.text, arguments, attributes)
    if line.peek() == "->":
        line.want("->")
        column, size = line.column, _size(line)
        pooled = line.peek() == "pooled"
        if pooled:
            line.take()
        call.result = (column, size, Extent.POOLED if pooled else Extent.FULL)
    line.end()
    return call


def _value(line: _Line, setting: Setting | None) -> Attribute:
    if setting is not None and setting.type is Dimension:
        return _size(line)
    column, token = line.column, line.take()
    if setting is None or setting.type is str:
        return token.text
    try:
        return int(token.text) if setting.type is int else float(token.text)
    except ValueError:
        _fail(line.number, column, f"{setting.name} is {token.text!r}; it must be {setting.rule}")


def _size(line: _Line) -> Dimension:
    """8, c, 4c, c/4, 3c/4 or max(4, c/4)."""
    column, minimum, rounds = line.column, 1, line.peek() == "max"
    if rounds:
        line.take()
        line.want("(")
        minimum = line.whole("the smallest size")
        line.want(",")
    multiply = line.whole("a size") if _WHOLE.fullmatch(line.peek()) else None
    of_channels = line.peek() == "c"
    if of_channels:
        line.take()
    elif multiply is None or rounds:
        line.fail(f"{line.peek() or 'the end of the line'!r} where a size was expected: 8, c, 4c, c/4 or max(4, c/4)")
    divide = 1
    if of_channels and line.peek() == "/":
        line.take()
        divide = line.whole("a divisor")
    if rounds:
        line.want(")")
    try:
        if not of_channels:
            return Dimension(minimum=multiply or 0)
        return Dimension(True, 1 if multiply is None else multiply, divide, minimum)
    except InvalidBlueprint as error:
        _fail(line.number, column, str(error))


def _graph(draft: _Draft, line: int, output: _Token) -> Graph:
    """The graph of all lines, checked; what `check` says is said with the line it is about."""
    values = {INPUT, *(call.name.text for call in draft.calls)}
    parameters = {parameter.name for _, _, parameter in draft.parameters}
    nodes = tuple(_node(call, values, parameters) for call in draft.calls)
    if output.text not in values:
        _fail(line, output.column, f"{output.text!r} is no node{nearest(output.text, values)}")
    graph = Graph(nodes, tuple(parameter for _, _, parameter in draft.parameters), output.text, draft.version)
    try:
        checked = check(graph)
    except InvalidBlueprint as error:
        _fail(*_place(draft, error, (line, output.column)), str(error))
    for call in draft.calls:
        if call.result is not None:
            column, size, extent = call.result
            value = checked.values[call.name.text]
            if (size, extent) != (value.channels, value.extent):
                is_ = f"{value.channels}{' pooled' if value.extent is Extent.POOLED else ''}"
                _fail(call.line, column, f"{call.name.text!r} is {is_}; correct this, or leave `-> ...` out")
    return graph


def _node(call: _Call, values: set[str], parameters: set[str]) -> Node:
    row = OPERATORS.get(call.operator)
    count = row.arity if row else len(call.arguments)
    for place, argument in enumerate(call.arguments):
        known, what = (values, "value") if place < count else (parameters, "parameter")
        if argument.text not in known:
            other = parameters if known is values else values
            where = f" (argument {place + 1} of {call.operator} is a {what})" if argument.text in other else ""
            message = f"{argument.text!r} is no {what}{where}{nearest(argument.text, known)}"
            _fail(call.line, argument.column, message)
    names = [argument.text for argument in call.arguments]
    return Node(call.name.text, call.operator, tuple(names[:count]), tuple(names[count:]), tuple(call.attributes))


def _place(draft: _Draft, error: InvalidBlueprint, output: tuple[int, int]) -> tuple[int, int]:
    """Line and column of what an error of `check` is about."""
    path = next(iter(error.fields), "")
    if found := re.match(r"(nodes|parameters)\[([0-9]+)\]", path):
        place = int(found[2])
        if found[1] == "parameters":
            return draft.parameters[place][:2]
        return draft.calls[place].line, draft.calls[place].name.column
    if found := re.match(r"node '([^']*)'", str(error)):
        for call in draft.calls:
            if call.name.text == found[1]:
                return call.line, call.name.column
    return (draft.head, 1) if path == "version" else output
