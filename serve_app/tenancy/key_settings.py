"""Keys and tenants as commands and the admin API spell them: flat, and without digests.

Owns those names. What may be set and its bounds are the records' own.
"""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import asdict, fields, replace

from serve_app.tenancy.key_defaults import KeyDefaults
from serve_app.tenancy.keys import ApiKey, KeyBook, Tenant
from serve_app.tenancy.limiter import Limits

LIMITS = tuple(field.name for field in fields(Limits))
DEFAULTS = tuple(field.name for field in fields(KeyDefaults))
KEY_SETTINGS = ("label", "scopes", "models", "max_class", "expires_at", *LIMITS, *DEFAULTS)
TENANT_SETTINGS = ("weight", "max_class", *LIMITS)


def set_key(key: ApiKey, settings: Mapping[str, Any]) -> ApiKey:
    """The key with some of KEY_SETTINGS changed. Raises ValueError: a limit is out of bounds."""
    own = {name: value for name, value in settings.items() if name not in (*LIMITS, *DEFAULTS)}
    for name in {"scopes", "models"} & own.keys():
        own[name] = tuple(dict.fromkeys(value for value in own[name] if value))
    limits = replace(key.limits, **_part(settings, LIMITS))
    defaults = replace(key.defaults, **_part(settings, DEFAULTS))
    return replace(key, **own, limits=limits, defaults=defaults)


def set_tenant(tenant: Tenant, settings: Mapping[str, Any]) -> Tenant:
    """The tenant with some of TENANT_SETTINGS changed. Raises as `set_key` does."""
    own = {name: value for name, value in settings.items() if name not in LIMITS}
    return replace(tenant, **own, limits=replace(tenant.limits, **_part(settings, LIMITS)))


def shown_key(key: ApiKey) -> dict[str, Any]:
    """All that may be told of a key."""
    return {
        "id": key.id,
        "tenant": key.tenant,
        "label": key.label,
        "status": key.status,
        "scopes": list(key.scopes),
        "models": list(key.models),
        "max_class": key.max_class,
        **asdict(key.limits),
        **asdict(key.defaults),
        "created_at": key.created_at,
        "expires_at": key.expires_at or None,
        "old_secrets_end_at": [old.until for old in key.old_secrets],
        "changed": asdict(key.changed) if key.changed is not None else None,
    }


def shown_tenant(name: str, book: KeyBook) -> dict[str, Any]:
    """All that may be told of a tenant, with how many keys of it are active."""
    tenant = book.tenants.get(name, Tenant())
    keys = sum(key.tenant == name and key.status == "active" for key in book.keys)
    return {
        "name": name,
        "weight": tenant.weight,
        "max_class": tenant.max_class,
        **asdict(tenant.limits),
        "active_keys": keys,
        "changed": asdict(tenant.changed) if tenant.changed is not None else None,
    }


def tenant_names(book: KeyBook) -> list[str]:
    """Those with a record of their own and those that only have keys, by name."""
    return sorted({*book.tenants, *(key.tenant for key in book.keys)})


def _part(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}
