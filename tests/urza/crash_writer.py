"""Loads a library until it is killed; prints one line for each write it was told is stored.

Run as `python crash_writer.py FOLDER FIRST`; not a test.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from esper.urza.engine import StoreOptions
from urza.fakes import add_blueprint, add_kernel, open_library


async def main(folder: Path, first: int) -> None:
    library = await open_library(folder, StoreOptions())
    print("open", flush=True)

    async def write(number: int) -> None:
        while True:
            if number % 2:
                print("kernel", await add_kernel(library, number), flush=True)
            else:
                print("blueprint", await add_blueprint(library, number), flush=True)
            number += 4

    await asyncio.gather(*(write(first + offset) for offset in range(4)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
