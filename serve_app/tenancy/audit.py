"""The audit: who changed which key or tenant, as Redis keeps it (the last 10,000 changes).

Owns reading it; writing is part of the step that changes, scripts/conf.lua.
"""

import msgspec

from serve_app.tenancy.store import Store

_KINDS = {"key": "key", "ten": "tenant"}


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One change."""

    id: str
    """Its place in the audit: `<milliseconds>-<n>`."""
    at: int
    """Unix seconds."""
    op: str
    """create, limits, rotate, revoke, set; add, edit or gone by hand; load into an empty Redis."""
    by: str
    """`cli:<user>`, `key:<id>` over HTTP, or `file`: an edit by hand."""
    kind: str
    """key or tenant."""
    name: str
    """The key's id, or the tenant."""
    version: int
    """Of the file."""
    changes: list[str]
    """`field=new value`, the fields as Redis spells them."""


async def read_audit(store: Store, limit: int = 100) -> list[AuditEntry]:
    """The newest entries, newest first. Raises StoreUnavailable."""
    key = f"{store.prefix}aud"
    entries = await store.command("XREVRANGE", key, "+", "-", "COUNT", limit)
    return [_entry(entry_id, fields) for entry_id, fields in entries]


def _entry(entry_id: str, fields: dict[str, str]) -> AuditEntry:
    return AuditEntry(
        id=entry_id,
        at=int(entry_id.partition("-")[0]) // 1000,
        op=fields["op"],
        by=fields["by"],
        kind=_KINDS[fields["kind"]],
        name=fields["name"],
        version=int(fields["version"]),
        changes=fields["changes"].split(),
    )
