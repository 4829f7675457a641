"""Keys and tenants: the records, as they are kept, published and shown.

Owns what a key may do and the bounds of what may be said of it. A secret is never in here, only
digests. Refuses to know files, Redis and HTTP.
"""

import re
from typing import Annotated, Literal, get_args

import msgspec

from serve_app.tenancy.key_defaults import KeyDefaults
from serve_app.tenancy.limiter import Limits

Scope = Literal["inference", "usage", "admin"]
"""inference: the routes for text and tokens; usage: what the key has used; admin: /admin/v1."""

PriorityClass = Literal["system", "interactive", "default", "batch"]
"""From the first served to the last."""
CLASSES: tuple[PriorityClass, ...] = get_args(PriorityClass)

TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
MODEL = re.compile(r"[A-Za-z0-9._/:-]{1,128}", re.ASCII)
MOST_MODELS = 64

KeyId = Annotated[str, msgspec.Meta(pattern="^[a-z0-9]{8}$")]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
UnixTime = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Note = Annotated[str, msgspec.Meta(max_length=256)]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Part of the file: unknown fields are mistakes."""


class Change(Record, frozen=True):
    """The last change by a command or over HTTP. An edit by hand leaves it as it is, which tells
    the two apart."""

    op: str
    by: str
    at: UnixTime
    version: int
    """Of the first book that had it."""


class OldSecret(Record, frozen=True):
    """A secret that was rotated away, and until when it is still good."""

    digest: Digest
    until: UnixTime


class ApiKey(Record, frozen=True, omit_defaults=True):
    """One key as it is kept: everything but its secret.

    Raises:
        ValueError: the tenant's name or a model's id cannot be used.
    """

    id: KeyId
    digest: Digest
    tenant: str
    label: Note = ""
    status: Literal["active", "revoked"] = "active"
    created_at: UnixTime = 0
    expires_at: UnixTime = 0
    """Unix seconds; 0: never."""
    scopes: tuple[Scope, ...] = ("inference", "usage")
    models: tuple[str, ...] = ()
    """The models it may ask for; none named: all."""
    max_class: PriorityClass = "interactive"
    """The highest class of its requests."""
    limits: Limits = Limits()
    defaults: KeyDefaults = KeyDefaults()
    old_secrets: tuple[OldSecret, ...] = ()
    changed: Change | None = None

    def __post_init__(self) -> None:
        check_tenant(self.tenant)
        if len(self.models) > MOST_MODELS or not all(map(MODEL.fullmatch, self.models)):
            raise ValueError(
                f"models has at most {MOST_MODELS} ids of 1 to 128 letters of A-Z, a-z, 0-9, "
                "'.', '_', '/', ':' and '-'"
            )


class Tenant(Record, frozen=True, omit_defaults=True):
    """Limits over all keys of a tenant, and its weight in the fair queue."""

    weight: Annotated[int, msgspec.Meta(ge=1, le=100)] = 1
    max_class: PriorityClass = "system"
    """The highest class of its keys' requests, whatever a key says."""
    limits: Limits = Limits()
    changed: Change | None = None


class KeyBook(Record, frozen=True):
    """The file's content."""

    version: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0
    """A book never replaces one with a higher version."""
    tenants: dict[str, Tenant] = {}
    keys: tuple[ApiKey, ...] = ()

    def key(self, key_id: str) -> ApiKey | None:
        """The key of that id."""
        return next((key for key in self.keys if key.id == key_id), None)

    def class_of(self, key: ApiKey) -> PriorityClass:
        """The lower of the highest classes of a key and of its tenant."""
        tenant = self.tenants.get(key.tenant, Tenant())
        return max(key.max_class, tenant.max_class, key=CLASSES.index)


class CreatedKey(msgspec.Struct, frozen=True):
    """A key with the only copy of a new secret."""

    secret: str
    key: ApiKey

    def __repr__(self) -> str:
        return f"CreatedKey(id={self.key.id!r})"


def check_tenant(name: str) -> None:
    """Raises ValueError when `name` cannot be part of a Redis key and a metric label."""
    if TENANT.fullmatch(name) is None:
        raise ValueError("a tenant's name has 1 to 64 letters of A-Z, a-z, 0-9, '.', '_' and '-'")
