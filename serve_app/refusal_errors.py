"""What a refusal of admission is over HTTP.

Owns one table, refusal -> status and type; the words, the code and the headers are the refusal's
own. The two rooms it joins, `serve_app.tenancy` and `serve_app.openai`, stay strangers.
"""

from serve_app.openai.errors import INVALID_REQUEST, ApiError, invalid_api_key
from serve_app.tenancy.refusals import (
    CostAboveBurst,
    NoReplica,
    Overloaded,
    RateLimited,
    Refusal,
    StoreUnavailable,
    Unauthorized,
)

_STATUS: dict[type[Refusal], tuple[int, str]] = {
    CostAboveBurst: (400, INVALID_REQUEST),
    RateLimited: (429, "rate_limit_error"),
    Overloaded: (429, "overloaded_error"),
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
