"""Every exception Esper raises on purpose.

EsperError
├── InvalidRequest        the caller sent something no retry will fix
│   ├── ShapeMismatch     two tensors, or a tensor and a slot, do not fit
│   ├── InvalidBlueprint  a graph that is not well formed, or an operator nobody knows
│   ├── InvalidConfig     a setting that is unknown or out of bounds
│   └── WrapRefused       a model, site or target that cannot carry seeds
├── NotFound              an id nobody here knows
├── Conflict              the thing exists, or moved on, since you last looked
├── OutOfRange            a position in a stream or ledger that is not, or no longer, there
├── PreconditionFailed    the thing is not in a state that allows this
│   ├── IllegalTransition a seed was asked to skip a stage of its life
│   └── Untrusted         bytes without the signatures that would let them run
├── Corrupt               bytes that are not what their digest says
├── Exhausted             a queue, a budget, a disk or memory is full
├── DeadlineExceeded      the answer did not come in time
├── Unauthenticated       no token, or one this runtime did not issue
├── Unavailable           a peer, a backend or a device is absent; retrying may help
└── KernelFault           a kernel raised, or returned NaN or the wrong shape
"""


class EsperError(Exception):
    """Base of the tree above. Catch it only at a process boundary."""


class InvalidRequest(EsperError):
    """The caller sent something no retry will fix.

    `fields` maps the path of each offending field to what is wrong with it; empty
    where the request as a whole is at fault.
    """

    def __init__(self, message: str, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}


class ShapeMismatch(InvalidRequest):
    """Two tensors, or a tensor and a slot, do not fit."""


class InvalidBlueprint(InvalidRequest):
    """A graph that is not well formed, or an operator nobody knows."""


class InvalidConfig(InvalidRequest):
    """A setting that is unknown or out of bounds."""


class WrapRefused(InvalidRequest):
    """A model, site or target that cannot carry seeds; the message names the site to take instead."""


class NotFound(EsperError):
    """An id nobody here knows."""


class Conflict(EsperError):
    """The thing exists, or moved on, since you last looked."""


class OutOfRange(EsperError):
    """A position in a stream or ledger that is not, or no longer, there: dropped by retention, or of another store."""


class PreconditionFailed(EsperError):
    """The thing is not in a state that allows this."""


class IllegalTransition(PreconditionFailed):
    """A seed was asked to skip a stage of its life."""


class Untrusted(PreconditionFailed):
    """Bytes without the signatures that would let them run."""


class Corrupt(EsperError):
    """Bytes that are not what their digest says."""


class Exhausted(EsperError):
    """A queue, a budget, a disk or memory is full."""


class DeadlineExceeded(EsperError):
    """The answer did not come in time."""


class Unauthenticated(EsperError):
    """No token, or one this runtime did not issue."""


class Unavailable(EsperError):
    """A peer, a backend or a device is absent; retrying may help."""


class KernelFault(EsperError):
    """A kernel raised, or returned NaN or the wrong shape."""
