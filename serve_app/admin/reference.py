"""What /openapi.json says of the admin API: texts and shapes as data.

Owns them. Requests are described by the bodies that check them. Knows no web framework.
"""

from typing import Any

import msgspec

from serve_app.admin.bodies import KEY_CHANGE, KEY_WISH, TENANT_CHANGE, Rotation
from serve_app.openai.openapi import (
    ANYWHERE,
    INTEGER,
    STRING,
    error_responses,
    object_of,
)
from serve_app.tenancy.audit import AuditEntry
from serve_app.tenancy.key_settings import LIMITS
from serve_app.tenancy.queue_view import QueueView

_UNIX = {**INTEGER, "description": "Unix time in seconds."}
_STRINGS = {"type": "array", "items": STRING}
_CHANGED = {
    "type": ["object", "null"],
    "description": "The last change by a command or over HTTP: what, by whom, when.",
}
_WORDS = {
    "rpm": "Requests per minute; 0, as in all limits: none.",
    "tpm": "Tokens per minute, input and output.",
    "itpm": "Input tokens per minute.",
    "otpm": "Output tokens per minute.",
    "concurrency": "Requests at a time, waiting ones included.",
    "burst_s": "Seconds' worth of a rate that may be taken at once.",
    "tokens_per_day": "Budget of a calendar day, UTC.",
    "tokens_per_month": "Budget of a calendar month, UTC.",
    "money_per_day": "Budget in millionths of the currency of the prices.",
    "money_per_month": "The same for a month.",
    "label": "A note for people.",
    "scopes": "What the key is good for.",
    "models": "The models it may ask for; empty: all.",
    "max_class": "The highest class of its requests.",
    "expires_at": "Unix time in seconds; 0: never.",
    "reasoning_format": "How thoughts are shown where a request does not say.",
    "answer_reserve": "Whether tokens are kept for the answer where a request does not say.",
    "weight": "Share of a full queue.",
    "tenant": "Who the key belongs to.",
    "overlap_s": "How long the present secret stays good.",
}


def _described(kind: Any) -> dict[str, Any]:
    """The JSON schema of a struct, all in one piece."""
    (schema,), parts = msgspec.json.schema_components([kind], ref_template="{name}")
    found: dict[str, Any] = parts[schema["$ref"]]
    for name, field in found["properties"].items():
        items = field.get("items", {})
        if "$ref" in items:
            field["items"] = parts[items["$ref"]]
        if name in _WORDS:
            field["description"] = _WORDS[name]
    return found


_LIMITS = dict.fromkeys(LIMITS, INTEGER)
_KEY = object_of(
    {
        "id": STRING,
        "tenant": STRING,
        "label": STRING,
        "status": {"enum": ["active", "revoked"]},
        "scopes": _STRINGS,
        "models": _STRINGS,
        "max_class": STRING,
        **_LIMITS,
        "reasoning_format": {"type": ["string", "null"]},
        "answer_reserve": {"type": "boolean"},
        "created_at": _UNIX,
        "expires_at": {**_UNIX, "type": ["integer", "null"]},
        "old_secrets_end_at": {"type": "array", "items": _UNIX},
        "changed": _CHANGED,
    }
)
_TENANT = object_of(
    {
        "name": STRING,
        "weight": INTEGER,
        "max_class": STRING,
        **_LIMITS,
        "active_keys": INTEGER,
        "changed": _CHANGED,
    }
)
_MADE = object_of(
    {
        "secret": {**STRING, "description": "Told this once and stored nowhere."},
        "key": _KEY,
    }
)


def list_keys() -> dict[str, Any]:
    """Keyword arguments for a route of FastAPI, as of all functions here."""
    return _route("All keys", "adminListKeys", _listed("keys", _KEY))


def create_key() -> dict[str, Any]:
    return _route("Make a key", "adminCreateKey", _MADE, KEY_WISH, {"tenant": "research"})


def show_key() -> dict[str, Any]:
    return _route("One key", "adminRetrieveKey", _KEY, missing=True)


def change_key() -> dict[str, Any]:
    summary = "Change what a key may do; what is left out stays"
    return _route(summary, "adminChangeKey", _KEY, KEY_CHANGE, {"rpm": 60}, missing=True)


def rotate_key() -> dict[str, Any]:
    summary = "Give a key a new secret"
    return _route(summary, "adminRotateKey", _MADE, Rotation, {"overlap_s": 3600}, missing=True)


def revoke_key() -> dict[str, Any]:
    summary = "End a key: it stays listed as revoked"
    return _route(summary, "adminRevokeKey", _KEY, missing=True)


def list_tenants() -> dict[str, Any]:
    return _route("All tenants", "adminListTenants", _listed("tenants", _TENANT))


def change_tenant() -> dict[str, Any]:
    summary = "Change a tenant, which may be new; what is left out stays"
    return _route(summary, "adminChangeTenant", _TENANT, TENANT_CHANGE, {"weight": 3})


def show_queue() -> dict[str, Any]:
    return _route("Who waits, by class and tenant", "adminShowQueue", _described(QueueView))


def show_audit() -> dict[str, Any]:
    summary = "Who changed which key or tenant, newest first"
    return _route(summary, "adminShowAudit", _listed("audit", _described(AuditEntry)))


def _listed(name: str, item: dict[str, Any]) -> dict[str, Any]:
    return object_of({name: {"type": "array", "items": item}})


def _route(
    summary: str,
    operation: str,
    reply: dict[str, Any],
    body: Any = None,
    example: Any = None,
    *,
    missing: bool = False,
) -> dict[str, Any]:
    extra: dict[str, Any] = {"security": [{"ApiKey": []}]}
    if body is not None:
        content = {"application/json": {"schema": _described(body), "example": example}}
        extra["requestBody"] = {"content": content}
    statuses = (400, 401, 403, *((404,) if missing else ()), 409, *ANYWHERE)
    content = {"application/json": {"schema": reply}}
    return {
        "summary": summary,
        "description": "Needs a key with the scope `admin`.",
        "operation_id": operation,
        "responses": {
            200: {"description": "Done.", "content": content},
            **error_responses(*statuses),
        },
        "openapi_extra": extra,
    }
