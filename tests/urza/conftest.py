"""One library per test, in a folder of its own."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esper.urza.library import CentralLibrary

from .fakes import open_library


@pytest.fixture
async def library(tmp_path: Path) -> AsyncIterator[CentralLibrary]:
    made = await open_library(tmp_path)
    yield made
    await made.close()
