"""What the forge needs of others: a library to take from and put into, workers, and ears for its news."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from esper.api.tezzeret.v1 import forge_pb2
from esper.api.urza.v1 import library_pb2


class Library(Protocol):
    """The part of the central library that the forge uses; errors are those of its contract."""

    async def get_blueprint(self, request: library_pb2.GetBlueprintRequest) -> library_pb2.GetBlueprintResponse: ...

    async def set_blueprint_status(
        self, request: library_pb2.SetBlueprintStatusRequest
    ) -> library_pb2.SetBlueprintStatusResponse: ...

    async def create_kernel(
        self, manifest: library_pb2.KernelManifest, files: Mapping[str, bytes]
    ) -> library_pb2.CreateKernelResponse: ...

    async def get_kernel(self, request: library_pb2.GetKernelRequest) -> library_pb2.GetKernelResponse: ...

    async def list_kernels(self, request: library_pb2.ListKernelsRequest) -> library_pb2.ListKernelsResponse: ...

    async def set_kernel_status(
        self, request: library_pb2.SetKernelStatusRequest
    ) -> library_pb2.SetKernelStatusResponse: ...


class Pool(Protocol):
    """Worker processes."""

    async def run(self, kind: str, payload: bytes, timeout_s: float) -> bytes:
        """Do one job and return its reply.

        Raises DeadlineExceeded (still at work after `timeout_s`; the worker was ended), Unavailable (the
        worker died) and KernelFault (the job raised).
        """
        ...


Publish = Callable[[forge_pb2.KernelReady], Awaitable[None]]
