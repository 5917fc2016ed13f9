"""What nats-py raises is always one of our errors to a caller of the bus."""

import nats.errors
import nats.js.errors
import pytest

from esper import errors
from esper.oona.link import Link


class Away:
    """As much of a client as a link needs to be made."""

    def jetstream(self):
        return None


@pytest.mark.parametrize(
    ("raised", "meant"),
    [
        (nats.js.errors.APIError(code=400, err_code=10077, description="maximum bytes exceeded"), errors.Exhausted),
        (nats.js.errors.NotFoundError(code=404, err_code=10059, description="stream not found"), errors.NotFound),
        (nats.js.errors.KeyNotFoundError(), errors.NotFound),
        (nats.js.errors.KeyDeletedError(), errors.NotFound),
        (nats.js.errors.KeyWrongLastSequenceError("wrong last sequence: 5"), errors.PreconditionFailed),
        (nats.js.errors.ServiceUnavailableError(code=503), errors.Unavailable),
        (nats.errors.NoRespondersError(), errors.Unavailable),
        (nats.errors.MaxPayloadError(), errors.Exhausted),
        (TimeoutError(), errors.DeadlineExceeded),
        (OSError("reset"), errors.Unavailable),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
async def test_every_error_has_a_meaning(raised, meant):
    with pytest.raises(meant):
        async with Link(Away()).held(1.0):
            raise raised
