"""QueueWishes: what the headers of a request say about its wait.

Owns the names of those headers and what they may hold. Refuses to know what the queue makes of
them, and the body.
"""

from collections.abc import Mapping
from typing import NamedTuple

from serve_app.openai import errors
from serve_app.tenancy.keys import CLASSES

CLASS_HEADER = "x-deeprequest-class"
TIMEOUT_HEADER = "x-deeprequest-timeout-ms"
LONGEST_TIMEOUT_MS = 86_400_000


class QueueWishes(NamedTuple):
    """How a request would wait; None where it does not say."""

    service_class: str | None = None
    patience_s: float | None = None
    """How long its client waits for the first byte."""
    timeout_s: float | None = None
    """How long it may take in all, from its arrival to its last token."""
    retries: int | None = None
    """How often its client sent it before."""

    @property
    def deadline_s(self) -> float | None:
        """After so long nobody wants its place any more."""
        said = [wish for wish in (self.patience_s, self.timeout_s) if wish is not None]
        return min(said, default=None)


def read_wishes(headers: Mapping[str, str]) -> QueueWishes:
    """`headers` by lower-case names.

    Raises:
        ApiError: a header of ours holds what it may not.
    """
    return QueueWishes(
        _class(headers), _sdk_timeout_s(headers), _timeout_s(headers), _retries(headers)
    )


def _class(headers: Mapping[str, str]) -> str | None:
    wish = headers.get(CLASS_HEADER)
    if wish is None or wish in CLASSES:
        return wish
    message = f"Invalid value for '{CLASS_HEADER}': must be one of {', '.join(CLASSES)}."
    raise errors.invalid_value(CLASS_HEADER, message)


def _timeout_s(headers: Mapping[str, str]) -> float | None:
    wish = headers.get(TIMEOUT_HEADER)
    if wish is None:
        return None
    sane = wish.isascii() and wish.isdecimal() and len(wish) <= len(str(LONGEST_TIMEOUT_MS))
    if sane and 1 <= int(wish) <= LONGEST_TIMEOUT_MS:
        return int(wish) / 1000
    message = (
        f"Invalid value for '{TIMEOUT_HEADER}': must be a whole number of milliseconds from 1 to "
        f"{LONGEST_TIMEOUT_MS}."
    )
    raise errors.invalid_value(TIMEOUT_HEADER, message)


def _sdk_timeout_s(headers: Mapping[str, str]) -> float | None:
    """As the openai SDK declares its own, between two bytes; what it may write there is its own
    affair."""
    try:
        seconds = float(headers.get("x-stainless-read-timeout", ""))
    except ValueError:
        return None
    return seconds if 0 < seconds < 1e6 else None


def _retries(headers: Mapping[str, str]) -> int | None:
    """As SDKs count them."""
    count = headers.get("x-stainless-retry-count", "")
    return int(count) if count.isascii() and count.isdecimal() and len(count) < 7 else None
