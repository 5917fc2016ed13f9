"""docs/artifact.md says what the code does: fields, files, words and limits."""

import json
import re
from pathlib import Path

from esper.artifact import attest, body
from esper.blueprint.interface import DTYPES, Kind

from .samples import built

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "artifact.md").read_text()


def rows(section: str) -> list[str]:
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE)


def test_the_bodys_fields_are_listed():
    assert sorted(rows("Body")) == sorted(json.loads(built().manifest.body))


def test_the_files_are_listed():
    assert sorted(rows("Files")) == sorted(body.REQUIRED_FILES) == sorted(built().files)


def test_words_and_limits_are_the_codes():
    assert ", ".join(body.TARGETS) in PAGE
    assert ", ".join(body.PIPELINES) in PAGE
    assert ", ".join(kind.value for kind in Kind) in PAGE
    assert ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES) in PAGE
    assert (body.FORMAT_VERSION, body.MAX_BODY_BYTES, body.MAX_FILES, body.MAX_ARTIFACT_BYTES) == (
        1,
        1 << 20,
        256,
        4 << 30,
    )
    assert attest.MAX_STATEMENT_BYTES == 64 << 10
