"""The routes of /admin/v1: who may call them, and what they answer.

Owns paths and errors. Every route demands a key with the scope `admin`, looked up afresh: a key
that lost the scope is refused at once. No answer holds a secret but those that made it.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, TypeVar

import msgspec
import orjson
import structlog
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from serve_app.admin import reference
from serve_app.admin.bodies import (
    KEY_CHANGE,
    KEY_WISH,
    TENANT_CHANGE,
    Rotation,
    parse,
    wrong_value,
)
from serve_app.key_check import KeyLookup, identified
from serve_app.openai import errors
from serve_app.refusal_errors import api_error
from serve_app.tenancy.admission import Identity
from serve_app.tenancy.audit import read_audit
from serve_app.tenancy.key_admin import KeyAdmin
from serve_app.tenancy.key_file import KeyFile, KeyFileError, UnknownKey
from serve_app.tenancy.key_settings import (
    set_key,
    set_tenant,
    shown_key,
    shown_tenant,
    tenant_names,
)
from serve_app.tenancy.keys import CreatedKey
from serve_app.tenancy.queue_view import queue_view
from serve_app.tenancy.refusals import Refusal

Result = TypeVar("Result")
log = structlog.get_logger(__name__)


def admin_routes(lookup: KeyLookup, keys: KeyAdmin) -> APIRouter:
    """All of them."""

    async def owner(request: Request) -> Identity:
        return await identified(lookup, request.headers.get("authorization"), "admin")

    router = APIRouter(prefix="/admin/v1", dependencies=[Depends(owner)], tags=["Admin"])
    caller = Depends(owner)
    _add_key_routes(router, keys, caller)
    _add_tenant_routes(router, keys, caller)
    _add_views(router, keys)
    return router


def _add_key_routes(router: APIRouter, keys: KeyAdmin, caller: Any) -> None:
    Caller = Annotated[Identity, caller]

    @router.get("/keys", **reference.list_keys())
    async def list_keys(tenant: str | None = None) -> Response:
        book = await _told(keys.book())
        rows = [shown_key(key) for key in book.keys if tenant is None or key.tenant == tenant]
        return _json({"keys": rows})

    @router.post("/keys", **reference.create_key())
    async def create_key(request: Request, caller: Caller) -> Response:
        settings = parse(await request.body(), KEY_WISH)
        tenant = settings.pop("tenant")
        shape = partial(set_key, settings=settings)
        return _made(await _change(keys, caller, lambda file: file.create(tenant, shape=shape)))

    @router.get("/keys/{key_id}", **reference.show_key())
    async def show_key(key_id: str) -> Response:
        key = (await _told(keys.book())).key(key_id)
        if key is None:
            raise errors.key_not_found()
        return _json(shown_key(key))

    @router.patch("/keys/{key_id}", **reference.change_key())
    async def change_key(key_id: str, request: Request, caller: Caller) -> Response:
        shape = partial(set_key, settings=parse(await request.body(), KEY_CHANGE))
        changed = await _change(keys, caller, lambda file: file.change(key_id, shape, "limits"))
        return _json(shown_key(changed))

    @router.post("/keys/{key_id}/rotate", **reference.rotate_key())
    async def rotate_key(key_id: str, request: Request, caller: Caller) -> Response:
        overlap_s = parse(await request.body(), Rotation)["overlap_s"]
        return _made(await _change(keys, caller, lambda file: file.rotate(key_id, overlap_s)))

    @router.delete("/keys/{key_id}", **reference.revoke_key())
    async def revoke_key(key_id: str, caller: Caller) -> Response:
        return _json(shown_key(await _change(keys, caller, lambda file: file.revoke(key_id))))


def _add_tenant_routes(router: APIRouter, keys: KeyAdmin, caller: Any) -> None:
    Caller = Annotated[Identity, caller]

    @router.get("/tenants", **reference.list_tenants())
    async def list_tenants() -> Response:
        book = await _told(keys.book())
        return _json({"tenants": [shown_tenant(name, book) for name in tenant_names(book)]})

    @router.patch("/tenants/{name}", **reference.change_tenant())
    async def change_tenant(name: str, request: Request, caller: Caller) -> Response:
        shape = partial(set_tenant, settings=parse(await request.body(), TENANT_CHANGE))
        await _change(keys, caller, lambda file: file.change_tenant(name, shape))
        return _json(shown_tenant(name, await _told(keys.book())))


def _add_views(router: APIRouter, keys: KeyAdmin) -> None:
    @router.get("/queue", **reference.show_queue())
    async def show_queue() -> Response:
        return _json(msgspec.to_builtins(await _told(queue_view(keys.store))))

    @router.get("/audit", **reference.show_audit())
    async def show_audit(limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> Response:
        entries = await _told(read_audit(keys.store, limit))
        return _json({"audit": msgspec.to_builtins(entries)})


async def _change(keys: KeyAdmin, caller: Identity, work: Callable[[KeyFile], Result]) -> Result:
    return await _told(keys.change(f"key:{caller.key_id}", work))


async def _told(asked: Awaitable[Result]) -> Result:
    """Raises ApiError instead of what the tenancy room raises."""
    try:
        return await asked
    except Refusal as refusal:
        raise api_error(refusal) from None
    except UnknownKey:
        raise errors.key_not_found() from None
    except (KeyFileError, OSError) as error:
        log.error("tenants_file_unusable", error=str(error))
        raise errors.tenants_file_unusable() from None
    except ValueError as error:
        raise wrong_value(error) from None


def _made(created: CreatedKey) -> Response:
    return _json({"secret": created.secret, "key": shown_key(created.key)})


def _json(value: Any) -> Response:
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    return Response(orjson.dumps(value), headers=headers)
