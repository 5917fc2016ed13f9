"""What worker processes do, as functions of bytes: the entry points named in serve.py's pools."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esper.api.common.v1 import training_pb2
from esper.api.kasmina.v1 import nursery_pb2
from esper.artifact.folder import read_folder
from esper.artifact.keys import TrustRoots
from esper.kasmina.cache import folder_of
from esper.kasmina.kernel import Kernel
from esper.kasmina.loader import parse
from esper.kasmina.nursery.worker import NurseryWorker
from esper.runtime.trust import read_trust
from esper.tolaria.codec import read_task
from esper.tolaria.replay import make_run
from esper.tolaria.task import load_task

# Set for worker processes by serve.py: where verified kernels lie, and whose signatures count.
KERNELS, TRUST = "ESPER_WORKER_KERNELS", "ESPER_WORKER_TRUST"


def nursery(payload: bytes, emit: Callable[[bytes], None]) -> bytes:
    """A nursery Job in, its JobResult out; partial ones are emitted."""
    job = nursery_pb2.Job.FromString(payload)
    results: list[nursery_pb2.JobResult] = []

    def take(result: nursery_pb2.JobResult) -> None:
        if result.twin.partial:
            emit(result.SerializeToString())
        else:
            results.append(result)

    kernel = functools.partial(_kernel, Path(os.environ[KERNELS]), read_trust(Path(os.environ[TRUST])))
    NurseryWorker(make_run, kernel, Path(os.environ[KERNELS])).do(job, take)
    return results[-1].SerializeToString()


def _kernel(folder: Path, roots: TrustRoots, artifact_id: str) -> Kernel:
    """A verified kernel from the folder the runtime put it in; the nursery computes with its reference form."""
    return parse(read_folder(folder_of(folder, artifact_id)), roots)


def preload_task(reference: list[Any]) -> None:
    """Import a task's module and data in the warm process, so that jobs do not pay for it."""
    message = training_pb2.TaskReference.FromString(bytes.fromhex(reference[0]))
    task = read_task(message)
    load_task(task.factory, task.arguments, task.import_paths)
