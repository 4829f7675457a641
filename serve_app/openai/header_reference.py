"""The documentation of the headers that routes for text take and give."""

from typing import Any

from serve_app.openai.openapi import STRING
from serve_app.openai.service_tiers import TIER_OF_CLASS

_CLASS = {**STRING, "enum": [*TIER_OF_CLASS]}

REQUEST_HEADERS: list[dict[str, Any]] = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {**STRING, "pattern": "^[!-~]{1,255}$"},
        "description": "A name of your choice for this request. It is then run once, even when you "
        "hang up: sent again, it gets 409 while it runs and its reply, uncharged, afterwards.",
    },
    {
        "name": "x-deeprequest-class",
        "in": "header",
        "required": False,
        "schema": _CLASS,
        "description": "How urgent it is: higher classes leave the queue first. Lowered to what "
        "your key allows. Without it `service_tier` decides, and then `default`.",
    },
    {
        "name": "x-deeprequest-timeout-ms",
        "in": "header",
        "required": False,
        "schema": {"type": "integer", "minimum": 1, "maximum": 86_400_000},
        "description": "How long it may take in all. It is refused at once (429) when its wait "
        "would be longer, leaves the queue when the time is over, and ends with an error when it "
        "runs then.",
    },
    {
        "name": "x-stainless-read-timeout",
        "in": "header",
        "required": False,
        "schema": STRING,
        "description": "Sent by the SDKs: the seconds they wait for a byte. No place in the queue "
        "is kept for longer; what runs is not ended by it.",
    },
    {
        "name": "x-stainless-retry-count",
        "in": "header",
        "required": False,
        "schema": {"type": "integer", "minimum": 0},
        "description": "Sent by the SDKs. A retry that does not wait for `retry-after` is the "
        "first to be refused where the queue is long.",
    },
]

RESPONSE_HEADERS: dict[str, dict[str, Any]] = {
    "x-request-id": {"schema": STRING, "description": "Name it when you report an error."},
    "x-deeprequest-ignored": {
        "schema": STRING,
        "description": "Fields of the request that had no effect.",
    },
    "x-deeprequest-class": {"schema": _CLASS, "description": "The class it was queued in."},
    "server-timing": {
        "schema": STRING,
        "description": "Milliseconds of queue, prefill and decode; of a stream the first.",
    },
    "retry-after-ms": {
        "schema": {"type": "integer"},
        "description": "With 429 and 503: come back after so many milliseconds. Where the queue "
        "was full a place is kept for you then. `retry-after` has the same in seconds, rounded up.",
    },
    "idempotent-replayed": {
        "schema": {"const": "true"},
        "description": "The kept reply of an earlier sending; nothing was charged.",
    },
}
