"""Whose signatures count, as a file that workers and trainers of the same machine read."""

import json
from pathlib import Path

from esper.artifact.keys import TrustRoots
from esper.errors import Corrupt, NotFound


def write_trust(path: Path, roots: TrustRoots) -> None:
    """Public keys only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = {"forge": [k.hex() for k in roots.forge], "evaluation": [k.hex() for k in roots.evaluation]}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(keys, indent=1))
    partial.replace(path)


def read_trust(path: Path) -> TrustRoots:
    """Raises NotFound and Corrupt."""
    try:
        keys = json.loads(path.read_text())
        return TrustRoots(
            tuple(bytes.fromhex(k) for k in keys["forge"]), tuple(bytes.fromhex(k) for k in keys["evaluation"])
        )
    except FileNotFoundError as error:
        raise NotFound(f"no trust file {path}; a runtime writes it when it starts") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"trust file {path} does not parse ({error}); delete it and restart the runtime") from error
