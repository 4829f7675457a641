"""Every error a route can end in, as OpenAI's envelope.

Owns the translation from the web framework's exceptions to ApiError. Refuses to know what caused
them: messages are fixed by status, a framework's own words never reach a client.
"""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from serve_app.openai import errors
from serve_app.openai.errors import ApiError, envelope


def error_response(error: ApiError) -> Response:
    """The response that carries an error."""
    headers = {"content-type": "application/json", **error.headers}
    return Response(envelope(error), error.status, headers=headers)


def install_error_handlers(app: FastAPI) -> None:
    """Makes every 4xx and 5xx of `app` an envelope."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _unexpected)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(_by_status(error.status_code, dict(error.headers or {}), request))


async def _validation_error(request: Request, error: Exception) -> Response:
    """A path or query parameter of the wrong type; bodies are parsed elsewhere."""
    assert isinstance(error, RequestValidationError)
    findings = error.errors()
    names = [part for part in findings[0]["loc"][1:] if isinstance(part, str)] if findings else []
    param = ".".join(names) or None
    return error_response(errors.invalid_value(param, "A parameter of the URL is not valid."))


async def _unexpected(request: Request, error: Exception) -> Response:
    return error_response(errors.internal_error(_request_id(request)))


def _by_status(status: int, headers: dict[str, str], request: Request) -> ApiError:
    if status == 404:
        return _unknown(request.url.path)
    if status == 405:
        return errors.method_not_allowed({"allow": _allowed(request)})
    if status == 401:
        return errors.invalid_api_key()
    if status == 403:
        return errors.permission_denied()
    if status >= 500:
        error = errors.internal_error(_request_id(request))
        return ApiError(status, error.message, type=error.type, code=error.code, headers=headers)
    return ApiError(status, "The request is not valid.", headers=headers)


def _unknown(path: str) -> ApiError:
    return errors.no_responses_api() if path.startswith("/v1/responses") else errors.unknown_url()


def _allowed(request: Request) -> str:
    """The methods of all routes of this path; the framework names those of the first one only."""
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= route.methods or set()
    return ", ".join(sorted(methods))


def _request_id(request: Request) -> str | None:
    request_id: str | None = getattr(request.state, "request_id", None)
    return request_id
