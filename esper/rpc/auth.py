"""Who may call: bearer tokens in metadata, `authorization: Bearer <token>`."""

import hmac
from collections.abc import Collection, Iterable

from esper import errors

HEADER = "authorization"
SCHEME = "Bearer "

# A load balancer's probe and a person with grpcurl have no token.
OPEN_SERVICES = frozenset({"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"})


def authenticate(metadata: Iterable[tuple[str, str | bytes]], tokens: Collection[str]) -> None:
    """Raise Unauthenticated unless `metadata` carries one of `tokens`."""
    sent = next((value for key, value in metadata if key == HEADER), None)
    if sent is None:
        raise errors.Unauthenticated(f"no token: send metadata `{HEADER}: {SCHEME}<token>`")
    raw = sent if isinstance(sent, bytes) else sent.encode()
    # Every token is compared, in constant time, so that the answer's delay says nothing.
    matches = [hmac.compare_digest(raw, (SCHEME + token).encode()) for token in tokens]
    if not any(matches):
        raise errors.Unauthenticated(f"the token in `{HEADER}` is not one this runtime issued")


def bearer(token: str) -> tuple[str, str]:
    """The metadata entry that carries `token`."""
    return HEADER, SCHEME + token
