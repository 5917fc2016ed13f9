"""Text of a graph: what is shown is read back, and what is wrong is named with line, column and the nearest name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper.blueprint.canonical import blueprint_id
from esper.blueprint.ir import Dimension, constant, of_channels
from esper.blueprint.operators import OPERATORS
from esper.blueprint.parse import MAX_TEXT, parse
from esper.blueprint.text import show
from esper.errors import InvalidBlueprint
from esper.karn.templates import TEMPLATES

from .strategies import graphs

GOOD = """
blueprint, version 1   # a comment
  return project
  active = relu(expand)
  expand = linear(input, w, b) out=max(4, 3c/4)  -> max(4, 3c/4)
  project = linear(active, v) out=c
  w [max(4, 3c/4), c] he_uniform
  b [max(4, 3c/4)] zeros
  v [c, max(4, 3c/4)] zeros
"""


@settings(max_examples=200)
@given(graphs(tuple(OPERATORS), most=8))
def test_what_is_shown_is_read_back(graph):
    text = show(graph)
    again = parse(text)
    assert blueprint_id(again) == blueprint_id(graph)
    assert show(again) == text


@pytest.mark.parametrize("title", TEMPLATES)
def test_a_template_is_read_back(title):
    graph = TEMPLATES[title].graph
    assert blueprint_id(parse(show(graph))) == blueprint_id(graph)


@given(st.booleans(), st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 1 << 20))
def test_a_size_is_read_back(of, multiply, divide, minimum):
    size = Dimension(of, multiply, divide, minimum)
    nodes = f"a = linear(input, w) out={size}\nb = linear(a, v) out=c\nreturn b\n"
    graph = parse(nodes + f"w [{size}, c] ones\nv [c, {size}] ones")
    assert dict(graph.nodes[0].attributes)["out"] == size


def test_lines_come_in_any_order_with_comments():
    graph = parse(GOOD)
    assert [node.name for node in graph.nodes] == ["active", "expand", "project"]
    assert graph.parameters[0].shape == (of_channels(3, 4, 4), of_channels())
    assert constant(4) not in graph.parameters[0].shape


@pytest.mark.parametrize(
    ("before", "after", "error"),
    [
        ("relu(", "rellu(", "line 4, column 12: operator 'rellu' is unknown; did you mean 'relu'?"),
        ("relu(", "quux(", "line 4, column 3: node 'active': operator 'quux' is unknown; known: add"),
        ("relu(", "dropout(", "node 'active': operator 'dropout' is unknown; a graft is a function of its parameters"),
        ("relu(expand)", "relu(expnd)", "line 4, column 17: 'expnd' is no value; did you mean 'expand'?"),
        ("relu(expand)", "relu(w)", "line 4, column 17: 'w' is no value (argument 1 of relu is a value)"),
        ("active, v)", "active, x)", "line 6, column 28: 'x' is no parameter"),
        ("active, v)", "active, expand)", "'expand' is no parameter (argument 2 of linear is a parameter)"),
        ("relu(expand)", "relu(expand", "line 4, column 23: 'the end of the line' where ',' was expected"),
        ("relu(expand)", "relu(expand, w)", "line 4, column 3: node 'active': relu takes 0 parameters, got 1"),
        ("relu(expand)", "add(expand)", "line 4, column 3: node 'active': add takes 2 inputs, got 1"),
        ("relu(expand)", "elu(expand) alpah=2", "column 24: elu has no setting 'alpah'; it has alpha; did you mean"),
        (
            "relu(expand)",
            "elu(expand) alpha=small",
            "column 30: alpha is 'small'; it must be a real number",
        ),
        ("relu(expand)", "elu(expand) alpha=99", "line 4, column 3: node 'active': attribute 'alpha' is 99.0; it must"),
        ("relu(expand)", "elu(expand) alpha", "line 4, column 29: 'the end of the line' where '=' was expected"),
        ("relu(expand)", "relu(expand) -> c", "line 4, column 28: 'active' is max(4, 3c/4); correct this, or leave"),
        ("relu(expand)", "relu(expand) -> max(4, 3c/4) pooled", "'active' is max(4, 3c/4); correct this"),
        ("relu(expand)", "relu(expand) -> max(4, 3c/4) pooled x", "column 48: 'x' where the line should end"),
        ("return project", "return projekt", "line 3, column 10: 'projekt' is no node; did you mean 'project'?"),
        ("return project", "", "line 10, column 1: the text has no `return NAME`"),
        ("return project", "return project\n  return active", "column 3: a second `return`; the first is on line 3"),
        ("return project", "return", "line 3, column 9: 'the end of the line' where the name of a node was expected"),
        (
            "he_uniform",
            "he_unifrom",
            "line 7, column 23: initialiser 'he_unifrom' is unknown; known: zeros",
        ),
        ("he_uniform", "he_unifrom", "did you mean 'he_uniform'?"),
        ("out=c", "out=huge", "line 6, column 35: 'huge' where a size was expected: 8, c, 4c, c/4 or max(4, c/4)"),
        ("out=c", "out=5000c", "line 6, column 35: dimension multiply is 5000; it must be a whole number, 0 to 4096"),
        ("out=c", "out=c/x", "line 6, column 37: 'x' where a divisor was expected"),
        ("out=c", "out=max(2, 8)", "line 6, column 43: ')' where a size was expected"),
        ("b [max(4, 3c/4)] zeros", "b [c] zeros", "line 5, column 3: node 'expand': bias 'b' is [c]; linear needs"),
        ("b [max(4, 3c/4)] zeros", "", "line 5, column 29: 'b' is no parameter"),
        ("b [max(4, 3c/4)] zeros", "b [] zeros", "line 8, column 3: parameter 'b': 0 dimensions"),
        ("b [max", "b (max", "line 8, column 5: '(' after 'b'; a parameter goes on with `[`, a node with `=`"),
        ("b [max", "9 [max", "line 8, column 3: '9' where a name was expected"),
        ("version 1", "version 7", "line 2, column 1: version is 7; this operator set is version 1"),
        ("active = relu", "w2 = tanh(input)\n  active = relu", "line 4, column 3: node 'w2' is not used"),
        ("active = relu(expand)", "active = relu(project)", "depends on itself"),
        ("active = relu(expand)", "active = relu(expand)\n active = tanh(expand)", "line 5, column 2: node 'active':"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(before, after, error):
    assert before in GOOD
    with pytest.raises(InvalidBlueprint) as caught:
        parse(GOOD.replace(before, after, 1))
    assert error in str(caught.value)
    assert str(caught.value).startswith("line ")


@pytest.mark.parametrize("text", ["", "\n\n# nothing\n"])
def test_an_empty_text_is_refused(text):
    with pytest.raises(InvalidBlueprint, match="the text has no `return NAME`"):
        parse(text)


def test_a_text_without_end_is_refused():
    with pytest.raises(InvalidBlueprint, match=f"has {MAX_TEXT + 1} characters; at most {MAX_TEXT}"):
        parse("#" * (MAX_TEXT + 1))


@given(st.text(alphabet="abcrelu=()[],->/ \n#4", max_size=80))
def test_any_text_is_read_or_refused(text):
    try:
        parse(text)
    except InvalidBlueprint as error:
        assert str(error).startswith("line ")
