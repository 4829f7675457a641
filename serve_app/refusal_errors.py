"""What a refusal of admission is over HTTP.

Owns one table, refusal -> status and type; the words, the code and the headers are the refusal's
own. The two rooms it joins, `serve_app.tenancy` and `serve_app.openai`, stay strangers.
"""

from serve_app.openai.errors import INVALID_REQUEST, ApiError, invalid_api_key
from serve_app.tenancy.refusals import (
    CostAboveBurst,
    NoReplica,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Refusal,
    Stopped,
    StoreUnavailable,
    Unauthorized,
)
from serve_app.tenancy.replies import NameReused, ReplyNotKept, StillRunning

_STATUS: dict[type[Refusal], tuple[int, str]] = {
    CostAboveBurst: (400, INVALID_REQUEST),
    RateLimited: (429, "rate_limit_error"),
    QuotaExhausted: (429, "insufficient_quota"),
    Overloaded: (429, "overloaded_error"),
    Stopped: (409, INVALID_REQUEST),
    StillRunning: (409, INVALID_REQUEST),
    ReplyNotKept: (409, INVALID_REQUEST),
    NameReused: (422, INVALID_REQUEST),
    NoReplica: (503, "service_unavailable"),
    StoreUnavailable: (503, "service_unavailable"),
}


def api_error(refusal: Refusal) -> ApiError:
    """The error of the same meaning."""
    if isinstance(refusal, Unauthorized):
        return invalid_api_key()
    status, kind = _STATUS[type(refusal)]
    param = "max_tokens" if isinstance(refusal, CostAboveBurst) else None
    return ApiError(
        status, str(refusal), type=kind, param=param, code=refusal.code, headers=refusal.headers()
    )
