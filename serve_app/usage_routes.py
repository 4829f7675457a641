"""The routes that tell what was used: a key's own, and for admins everybody's.

Owns their paths, parameters and errors. Figures are those of the ledger, a request that ended a
moment ago among them.
"""

import datetime
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from serve_app.desk import Desk
from serve_app.ledger.database import LedgerUnavailable
from serve_app.ledger.reader import UsageReader
from serve_app.ledger.report import csv_text, row
from serve_app.ledger.sums import Dimension, UsageQuery
from serve_app.openai import errors
from serve_app.openai.usage_reference import admin_usage_route, usage_route
from serve_app.refusal_errors import api_error
from serve_app.tenancy.admission import Identity
from serve_app.tenancy.refusals import Refusal

Start = Annotated[datetime.date | None, Query(description="The first day, UTC.")]
End = Annotated[datetime.date | None, Query(description="The last day, UTC.")]
Form = Annotated[Literal["json", "csv"], Query(alias="format")]
ByMine = Annotated[list[Literal["day", "model", "key"]], Query(alias="group_by")]
ByAll = Annotated[list[Literal["day", "model", "key", "tenant"]], Query(alias="group_by")]
Name = Annotated[str | None, Query(pattern="^[A-Za-z0-9._-]{1,64}$")]


def usage_routes(desk: Desk, reader: UsageReader) -> APIRouter:
    """Each demands a key with the scope it needs."""

    async def owner(request: Request) -> Identity:
        return await desk.identify(request.headers.get("authorization"), "usage")

    async def admin(request: Request) -> Identity:
        return await desk.identify(request.headers.get("authorization"), "admin")

    router = APIRouter()

    @router.get("/v1/usage", **usage_route())
    async def usage(
        caller: Annotated[Identity, Depends(owner)],
        start: Start = None,
        end: End = None,
        by: ByMine = [],  # noqa: B006 - FastAPI copies defaults
        form: Form = "json",
    ) -> Response:
        query = UsageQuery(by=_once(by), key=caller.key_id, **_days(start, end))
        return await _told(reader, query, form)

    @router.get("/admin/v1/usage", dependencies=[Depends(admin)], **admin_usage_route())
    async def everybodys_usage(
        start: Start = None,
        end: End = None,
        by: ByAll = [],  # noqa: B006
        tenant: Name = None,
        key: Name = None,
        form: Form = "json",
    ) -> Response:
        query = UsageQuery(by=_once(by), tenant=tenant, key=key, **_days(start, end))
        return await _told(reader, query, form)

    return router


def _once(by: Sequence[Dimension]) -> tuple[Dimension, ...]:
    return tuple(dict.fromkeys(by))


def _days(start: datetime.date | None, end: datetime.date | None) -> dict[str, Any]:
    """Raises ApiError: the last day is before the first."""
    if start is not None and end is not None and end < start:
        raise errors.invalid_value("end", "Invalid value for 'end': it is before 'start'.")
    if end is None or end == datetime.date.max:
        return {"since": start}
    return {"since": start, "until": end + datetime.timedelta(1)}


async def _told(reader: UsageReader, query: UsageQuery, form: str) -> Response:
    by = query.by
    try:
        sums = await reader.sums(query)
    except Refusal as refusal:
        raise api_error(refusal) from None
    except LedgerUnavailable:
        raise errors.ledger_unavailable() from None
    headers = {"cache-control": "no-store"}
    if form == "csv":
        return Response(csv_text(sums, by), media_type="text/csv", headers=headers)
    body = orjson.dumps({"object": "list", "data": [row(one, by) for one in sums]})
    return Response(body, media_type="application/json", headers=headers)
