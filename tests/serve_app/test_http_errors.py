import asyncio
import json

import httpx2 as httpx
import pytest
from fastapi import FastAPI, HTTPException
from starlette.responses import Response

from serve_app.http_errors import error_response, install_error_handlers
from serve_app.openai import errors


def application() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    install_error_handlers(app)

    @app.get("/number/{number}")
    async def number(number: int, size: int = 1) -> Response:
        return Response()

    @app.get("/api-error")
    async def api_error() -> Response:
        raise errors.no_replica(3)

    @app.head("/bug")
    @app.get("/bug")
    async def bug() -> Response:
        raise RuntimeError("secret words of a client")

    @app.get("/framework/{status}")
    async def framework(status: int) -> Response:
        raise HTTPException(status, detail="the framework's own words")

    return app


def ask(path: str, method: str = "GET") -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app=application(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path)

    return asyncio.run(once())


def error_of(reply: httpx.Response) -> dict[str, str | None]:
    assert reply.headers["content-type"] == "application/json"
    body = json.loads(reply.content)
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, str | None] = body["error"]
    return error


def test_an_api_error_keeps_its_headers() -> None:
    reply = ask("/api-error")
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "3"
    assert error_of(reply)["code"] == "no_replica"


@pytest.mark.parametrize("path", ["/nowhere", "/v1/responses", "/api-error/more"])
def test_an_unknown_path_names_the_way(path: str) -> None:
    reply = ask(path)
    assert reply.status_code == 404
    assert "/v1/chat/completions" in str(error_of(reply)["message"])


def test_a_wrong_method_is_told_the_right_one() -> None:
    reply = ask("/api-error", "DELETE")
    assert reply.status_code == 405
    assert reply.headers["allow"] == "GET"
    error_of(reply)


def test_allow_names_the_methods_of_every_route_of_the_path() -> None:
    assert ask("/bug", "POST").headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("path", "param"), [("/number/seven", "number"), ("/number/7?size=x", "size")]
)
def test_a_wrong_parameter_of_the_url_is_a_400(path: str, param: str) -> None:
    reply = ask(path)
    assert reply.status_code == 400
    assert error_of(reply)["param"] == param


def test_a_bug_says_nothing_of_itself() -> None:
    reply = ask("/bug")
    assert reply.status_code == 500
    assert error_of(reply)["code"] == "internal_error"
    assert "secret" not in reply.text
    assert "RuntimeError" not in reply.text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 422, 500, 503])
def test_the_framework_never_speaks_itself(status: int) -> None:
    reply = ask(f"/framework/{status}")
    assert reply.status_code == status
    assert "framework" not in str(error_of(reply)["message"])


def test_an_error_response_is_the_envelope() -> None:
    reply = error_response(errors.model_not_found())
    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/json"
    assert bytes(reply.body) == errors.envelope(errors.model_not_found())
