import asyncio
import hashlib
import re
from pathlib import Path

import httpx2 as httpx
import jsonschema
import pytest
from fastapi import FastAPI
from starlette.responses import Response

from serve_app.docs import ASSETS, chat_route, install_docs
from serve_app.http_errors import install_error_handlers

WEB = Path(__file__).resolve().parents[2] / "serve_app" / "web"


def application() -> FastAPI:
    app = FastAPI(title="DeepRequest", docs_url=None, redoc_url=None, openapi_url=None)
    install_error_handlers(app)
    install_docs(app)

    @app.post("/v1/chat/completions", **chat_route("deepseek-r1-32b"))
    async def chat() -> Response:
        return Response()

    @app.get("/v1/models/{model_id}")
    async def model(model_id: str) -> dict[str, str]:
        return {"id": model_id}

    return app


def get(path: str) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app=application())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path)

    return asyncio.run(once())


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_loads_only_what_this_server_has(page: str) -> None:
    reply = get(page)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/html")
    assert "//" not in reply.text
    loaded = re.findall(r'(?:src|href)="([^"]+)"', reply.text)
    local = [path for path in loaded if not path.startswith("data:")]
    assert local
    for path in local:
        assert get(f"/{path}").status_code == 200


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_a_page_holds_no_inline_script_and_forbids_other_origins(page: str) -> None:
    reply = get(page)
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=", reply.text)
    policy = dict(
        part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert "http" not in reply.headers["content-security-policy"]


@pytest.mark.parametrize("name", ASSETS)
def test_an_asset_comes_with_its_type(name: str) -> None:
    reply = get(f"/docs/assets/{name}")
    assert reply.status_code == 200
    kind = "css" if name.endswith(".css") else "javascript"
    assert reply.headers["content-type"].startswith(f"text/{kind}")
    assert reply.content == (WEB / name).read_bytes()


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2f..%2fdocs.py", "../docs.py", "docs.html", "SHA256SUMS"]
)
def test_no_other_file_can_be_had(name: str) -> None:
    assert get(f"/docs/assets/{name}").status_code == 404


def test_vendored_files_are_the_published_ones() -> None:
    for line in (WEB / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((WEB / name).read_bytes()).hexdigest() == digest


def test_the_document_describes_the_chat_route() -> None:
    document = get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    chat = document["paths"]["/v1/chat/completions"]["post"]
    body = chat["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].endswith("/ChatCompletionRequest")
    assert body["examples"]["standard"]["value"]["temperature"] == 0.6
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert chat["responses"]["429"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "/Error"
    )
    assert chat["security"] == [{"ApiKey": []}]
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"


def test_every_reference_in_the_document_leads_somewhere() -> None:
    document = get("/openapi.json").json()
    references = set(re.findall(r'"#/components/schemas/(\w+)"', get("/openapi.json").text))
    assert references
    assert references <= set(document["components"]["schemas"])
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_only_the_statuses_of_this_service_are_announced() -> None:
    document = application().openapi()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    paths = document["paths"]
    chat = paths["/v1/chat/completions"]["post"]["responses"]
    assert chat["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    assert "422" not in paths["/v1/models/{model_id}"]["get"]["responses"]
