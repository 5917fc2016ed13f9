"""The native library's schemas, read from csrc/schemas.cpp."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def defined() -> dict[str, str]:
    """Name of each op to its schema, "name(arguments) -> results"."""
    source = (ROOT / "csrc/schemas.cpp").read_text()
    texts = ["".join(re.findall(r'"(.*?)"', call)) for call in re.findall(r"m\.def\((.*?)\);", source, re.S)]
    return {text.split("(")[0]: text for text in texts}
