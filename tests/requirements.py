"""What a test needs and a machine may lack: a skip that names it, and fails where it was promised.

ESPER_REQUIRE=cpp,triton (comma-separated) says what must be there: then its absence is a failure, not a skip.
"""

import os

import pytest


def require(name: str, reason: str) -> None:
    """Go on where `reason` is empty. Else skip the test, saying what is missing and the fix; fail if it is required."""
    if not reason:
        return
    if name in os.environ.get("ESPER_REQUIRE", "").split(","):
        pytest.fail(f"{name} is required here (ESPER_REQUIRE) and absent: {reason}", pytrace=False)
    pytest.skip(f"{name}: {reason}")
