"""TorchScript as bytes: equal for equal sources, wherever and whenever they are made."""

import io
import zipfile

import pytest
import torch

from esper.artifact.body import read_body
from esper.artifact.contents import open_contents
from esper.artifact.script import load_script, normalise, save_script
from esper.blueprint.emit import emit_function, torchscript
from esper.blueprint.interface import Interface, Kind
from esper.errors import Corrupt, InvalidRequest
from esper.karn.templates import TEMPLATES

from .samples import built, leaves

SOURCE = "def forward(x: Tensor, w: Tensor) -> Tensor:\n    return torch.relu(torch.linear(x, w))\n"


def test_the_same_source_gives_the_same_bytes():
    assert save_script(SOURCE) == save_script(SOURCE)
    assert save_script(SOURCE) != save_script(SOURCE.replace("relu", "tanh"))


def test_what_differs_between_equal_archives_is_left_out():
    unit = torch._C.CompilationUnit()
    unit.define(SOURCE, lambda name: torch.ops.aten if name == "torch" else None)
    first, second = (unit.find_function("forward").save_to_buffer({}) for _ in range(2))
    with zipfile.ZipFile(io.BytesIO(normalise(first))) as archive:
        names, dates = archive.namelist(), {entry.date_time for entry in archive.infolist()}
    assert names == sorted(names)
    assert dates == {(1980, 1, 1, 0, 0, 0)}
    assert not [name for name in names if name.endswith((".debug_pkl", "serialization_id"))]
    assert [name for name in zipfile.ZipFile(io.BytesIO(first)).namelist() if name.endswith(".debug_pkl")]
    assert normalise(first) == normalise(second)
    assert normalise(normalise(first)) == normalise(first)


def test_an_archive_under_another_name_is_the_same(tmp_path):
    unit = torch._C.CompilationUnit()
    unit.define(SOURCE, lambda name: torch.ops.aten if name == "torch" else None)
    unit.find_function("forward").save(str(tmp_path / "somewhere-else.pt"))
    assert normalise((tmp_path / "somewhere-else.pt").read_bytes()) == save_script(SOURCE)


def test_a_loaded_form_computes_and_differentiates_by_tensors_of_others():
    form = load_script(save_script(SOURCE), 1)
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    for _ in range(3):  # the optimised graph from the second call on
        got = torch.autograd.grad(form(x, w).square().sum(), (x, w))
        want = torch.autograd.grad(torch.relu(x @ w.T).square().sum(), (x, w))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("interface", [Interface(Kind.MAP2D, 8), Interface(Kind.TOKENS, 8, causal=True)], ids=str)
def test_a_templates_form_holds_nothing_of_its_own(interface):
    artifact = built("single_head_attention", interface)
    body = read_body(artifact.manifest.body)
    contents = open_contents(body, artifact.files)
    names = [argument.name for argument in contents.form.schema.arguments[1:]]
    assert names == ["x", *(f"p_{parameter.name}" for parameter in body.parameters)]
    given = leaves(interface, contents.weights, *[4] * interface.kind.position_dims)
    assert contents.form(*given).shape == given[0].shape


def test_a_form_that_owns_a_tensor_is_refused():
    class Owner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = torch.nn.Buffer(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.kept

    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Owner()), buffer)
    with pytest.raises(InvalidRequest, match="owns kept; a form owns nothing"):
        load_script(buffer.getvalue(), 0)


@pytest.mark.parametrize(
    ("source", "taken"),
    [
        (SOURCE, r"\(Tensor, Tensor\) -> Tensor; it must take the input and 2 parameters"),
        ("def forward(x: Tensor, w: Tensor, n: int) -> Tensor:\n    return x\n", "int"),
        ("def forward(x: Tensor, w: Tensor, v: Tensor) -> Tuple[Tensor, Tensor]:\n    return x, w\n", "must take"),
    ],
)
def test_a_form_with_another_signature_is_refused(source, taken):
    with pytest.raises(InvalidRequest, match=taken):
        load_script(save_script(source), 2)


@pytest.mark.parametrize(
    "lines",
    [
        "    return torch.from_file('/etc/passwd', False, 4, dtype=0)\n",
        "    if x.size(0) > 3:\n        x = x + torch.from_file('/etc/passwd', True, 4)\n    return x\n",
    ],
)
def test_a_form_that_would_touch_files_is_refused(lines):
    with pytest.raises(InvalidRequest, match="uses aten::from_file; a form computes on tensors, no more"):
        load_script(save_script(f"def forward(x: Tensor) -> Tensor:\n{lines}"), 0)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"junk" * 100])
def test_bytes_that_are_no_torchscript_are_corrupt(data):
    with pytest.raises(Corrupt, match="are no TorchScript"):
        load_script(data, 1)


def test_a_zip_that_is_no_torchscript_is_corrupt():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.")
        archive.writestr("archive/version", b"3\n")
    with pytest.raises(Corrupt, match="are no TorchScript"):
        load_script(buffer.getvalue(), 1)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def forward(x: Tensor) -> Tensor:\n    return torch.no_such_thing(x)\n", "is no TorchScript"),
        ("def forward(x", "is no TorchScript"),
        ("def backward(x: Tensor) -> Tensor:\n    return x\n", "defines no function 'forward'"),
        ("def forward(x: Tensor) -> Tensor:\n    return os.system(x)\n", "is no TorchScript"),
    ],
)
def test_source_that_does_not_compile_is_refused(source, reason):
    with pytest.raises(InvalidRequest, match=reason):
        save_script(source)


def test_a_whole_templates_source_is_small():
    source = torchscript(emit_function(TEMPLATES["conv3"].graph, Interface(Kind.MAP2D, 64), "forward"))
    assert len(save_script(source)) < 4096
