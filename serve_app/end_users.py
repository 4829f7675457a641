"""End users: whom a client sends a request for, as far as the log may know.

Owns the pseudonym under which they are noted: a hash keyed by the client's own key, so that an
operator can tell one end user's requests from another's, and nobody can guess who it is.
"""

import hashlib

import structlog

from serve_app.tenancy.admission import Identity

log = structlog.get_logger(__name__)


def pseudonym(end_user: str, identity: Identity) -> str:
    """Sixteen hexadecimal digits; of one key, equal for equal users only."""
    secret = identity.digest.encode()[:32]
    return hashlib.blake2s(end_user.encode(), digest_size=8, key=secret).hexdigest()


def note_end_user(request_id: str, end_user: str | None, identity: Identity) -> None:
    """One line in the log, if the client told whom the request is for."""
    if end_user:
        user = pseudonym(end_user, identity)
        log.info("end_user", request=request_id, key=identity.key_id, user=user)
