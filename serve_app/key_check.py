"""The key check: whose key an Authorization header holds, and what it must be good for.

Owns the form of the header and that a scope is demanded. Refuses to know where keys are looked up.
"""

from typing import Protocol

from serve_app.openai import errors
from serve_app.refusal_errors import api_error
from serve_app.tenancy.admission import Identity
from serve_app.tenancy.keys import Scope
from serve_app.tenancy.refusals import Refusal


class KeyLookup(Protocol):
    """Who knows keys."""

    async def identify(self, secret: str, *, fresh: bool = False) -> Identity:
        """See `AdmissionQueue.identify`."""


async def identified(
    lookup: KeyLookup, authorization: str | None, scope: Scope | None = None
) -> Identity:
    """The key's identity; for the scope `admin` looked up afresh.

    Raises:
        ApiError: 401; 403 where the key lacks the scope; 503 when keys cannot be read.
    """
    scheme, _, secret = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not secret or secret != secret.strip():
        raise errors.invalid_api_key()
    try:
        identity = await lookup.identify(secret, fresh=scope == "admin")
    except Refusal as refusal:
        raise api_error(refusal) from None
    if scope is not None and scope not in identity.scopes:
        raise errors.permission_denied(scope)
    return identity
