"""The committed generated code runs with the oldest protobuf and gRPC that pyproject.toml admits."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.requirements import require

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("protobuf", "grpcio", "grpcio-health-checking"),
    *("grpcio-reflection", "grpcio-status", "grpcio-channelz"),
)
# Imports every generated module, then serves and calls one service over a socket with all interceptors.
CALL = """
import asyncio, importlib, pathlib, sys
import google.protobuf, grpc
root = pathlib.Path(sys.argv[1])
for path in sorted((root / "esper" / "api").rglob("*_pb2*.py")):
    importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
from esper.api.karn.v1 import architect_pb2, architect_pb2_grpc
from esper.errors import InvalidRequest
from esper.karn.service import ArchitectServicer
from esper.rpc.client import open_channel
from esper.rpc.server import Server


async def main():
    server = Server(tokens=None)
    server.mount(architect_pb2_grpc.add_ArchitectServiceServicer_to_server, ArchitectServicer(None, None))
    port = await server.start()
    async with server, open_channel(f"127.0.0.1:{port}", token=None) as channel:
        stub = architect_pb2_grpc.ArchitectServiceStub(channel)
        reply = await stub.ListTemplates(architect_pb2.ListTemplatesRequest())
        try:
            await stub.ProposeBlueprints(architect_pb2.ProposeBlueprintsRequest(limit=1000))
        except InvalidRequest as error:
            print(google.protobuf.__version__, grpc.__version__, len(reply.designs), sorted(error.fields))

asyncio.run(main())
"""


def floors() -> dict[str, str]:
    text = (ROOT / "pyproject.toml").read_text()
    return {name: re.search(rf'"{name}>=([0-9.]+)', text).group(1) for name in PACKAGES}


@pytest.mark.slow
def test_generated_code_and_server_run_on_the_oldest_runtime(tmp_path):
    wanted = [f"{name}=={version}.*" for name, version in floors().items()]
    wanted.append("googleapis-common-protos<1.71")  # newer ones ask for a newer protobuf
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), *wanted]
    got = subprocess.run(install, capture_output=True, text=True, timeout=250)
    require("packages", got.stderr.strip().rpartition("\n")[2] if got.returncode else "")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(ROOT)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    protobuf, grpc, designs, fields = done.stdout.strip().split(" ", 3)
    assert (protobuf.startswith("5.29"), grpc.startswith("1.71")) == (True, True)
    assert int(designs) >= 8 and "interface" in fields and "limit" in fields
