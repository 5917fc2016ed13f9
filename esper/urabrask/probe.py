"""Find out what isolation can be had in this process, and prove it on a port of our own."""

import socket

from esper.errors import Unavailable
from esper.urabrask.confine import Send, confined
from esper.urabrask.jail import Isolation, Limits, network_reached

TIMEOUT_S = 20.0
_ISOLATED, _REACHED = b"i", b"n"


def probe(limits: Limits = Limits()) -> Isolation:  # noqa: B008  frozen
    """Shut a child off and have it try to reach a listening port of this process, which must have one thread.

    Raises Unavailable where no isolation can be had, or where the child got through.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        port = server.getsockname()[1]

        def work(_payload: bytes, send: Send, isolation: Isolation) -> None:
            send(_ISOLATED, isolation.how.encode())
            send(_REACHED, network_reached(port).encode())

        outcome = confined(work, b"", limits, TIMEOUT_S)
        told = dict(outcome.frames)
        if outcome.ending or told.get(_REACHED, b"nothing was said"):
            reached = told.get(_REACHED, b"").decode(errors="replace")
            raise Unavailable(f"isolation does not hold: {reached or 'the child'} {outcome.ending}".strip())
    return Isolation(told[_ISOLATED].decode())
