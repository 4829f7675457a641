"""The application as a client sees it: a real service and a real Redis, a scripted model."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from fastapi.routing import iter_route_contexts

from serve_app.routes import PUBLIC_PATHS
from tests.serve_app.site import CHAT, CONTEXT, MODEL_ID, Load, Site, error_of
from tests.serve_app.tenancy.world import until

PUBLIC_GETS = [path.format(name="docs-init.js") for path in PUBLIC_PATHS]

pytestmark = pytest.mark.anyio


async def never_read() -> AsyncIterator[bytes]:
    raise AssertionError("the body was read before the key")
    yield b""


UNKNOWN_KEY = "dr-aaaaaaaa-" + "a" * 49


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic {secret}",
        "{secret}",
        "Bearer  {secret}",
        "Bearer {secret} {secret}",
        "Bearer {secret}x",
        f"Bearer {UNKNOWN_KEY}",
    ],
)
async def test_without_a_right_key_the_body_is_not_even_read(
    site: Site, authorization: str | None
) -> None:
    secret = (await site.world.key()).secret
    headers = (
        {} if authorization is None else {"authorization": authorization.format(secret=secret)}
    )
    reply = await site.client.post(CHAT, content=never_read(), headers=headers)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert error_of(reply)["code"] == "invalid_api_key"
    assert secret not in reply.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_known_in_any_case(site: Site, scheme: str) -> None:
    key = await site.world.key()
    headers = {"authorization": f"{scheme} {key.secret}"}
    assert (await site.client.get("/v1/models", headers=headers)).status_code == 200


async def test_every_route_is_public_by_name_or_asks_for_a_key(site: Site) -> None:
    asked = set()
    for route in iter_route_contexts(site.app.routes):
        assert route.path is not None
        if route.path in PUBLIC_PATHS:
            continue
        url = route.path.replace("{model_id:path}", MODEL_ID)
        for method in route.methods or ():
            reply = await site.client.request(method, url)
            assert reply.status_code == 401, (method, url)
            asked.add((method, url))
    assert asked == {
        ("GET", "/v1/models"),
        ("GET", f"/v1/models/{MODEL_ID}"),
        ("POST", CHAT),
        ("POST", f"{CHAT}/render"),
        ("POST", "/v1/completions"),
        ("POST", f"{CHAT}/{{id}}/cancel"),
        ("POST", "/v1/completions/{id}/cancel"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/admin/v1/keys"),
        ("POST", "/admin/v1/keys"),
        ("GET", "/admin/v1/keys/{key_id}"),
        ("PATCH", "/admin/v1/keys/{key_id}"),
        ("DELETE", "/admin/v1/keys/{key_id}"),
        ("POST", "/admin/v1/keys/{key_id}/rotate"),
        ("GET", "/admin/v1/tenants"),
        ("PATCH", "/admin/v1/tenants/{name}"),
        ("GET", "/admin/v1/queue"),
        ("GET", "/admin/v1/audit"),
        ("GET", "/v1/usage"),
        ("GET", "/admin/v1/usage"),
    }


async def test_without_its_scope_a_key_is_good_for_nothing_but_the_models(site: Site) -> None:
    created = await site.world.key_for("usage")
    headers = {"authorization": f"Bearer {created.secret}"}
    for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize", f"{CHAT}/render"):
        reply = await site.client.post(path, content=never_read(), headers=headers)
        assert reply.status_code == 403
        error = error_of(reply)
        assert error["code"] == "permission_denied"
        assert "inference scope" in error["message"]
    assert (await site.client.get("/v1/models", headers=headers)).status_code == 200
    assert await site.counted() == {"403": 2}


async def test_a_model_that_a_key_may_not_use_does_not_exist_for_it(site: Site) -> None:
    await site.world.replica()
    for models, allowed in ((("other",), False), (("other", MODEL_ID), True)):
        created = await site.world.key_for("inference", models=models)
        headers = {"authorization": f"Bearer {created.secret}"}
        reply = await site.chat(headers)
        assert reply.status_code == (200 if allowed else 404)
        if not allowed:
            assert error_of(reply)["code"] == "model_not_found"
        listed = (await site.client.get("/v1/models", headers=headers)).json()["data"]
        assert [model["id"] for model in listed] == [MODEL_ID] * allowed
        found = await site.client.get(f"/v1/models/{MODEL_ID}", headers=headers)
        assert found.status_code == (200 if allowed else 404)


async def test_a_stream_of_a_revoked_key_ends_with_an_error_and_is_settled(site: Site) -> None:
    await site.world.replica()
    created = await site.world.key()
    headers = {"authorization": f"Bearer {created.secret}"}
    site.replica.released = asyncio.Event()
    asking = asyncio.create_task(site.chat(headers, stream=True))
    await until(lambda: site.replica.submitted)
    site.world.keys.revoke(created.key.id)
    await site.world.publish()
    last = (await asking).text.split("\n\n")[-2]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "invalid_api_key"

    async def settled() -> bool:
        return bool(await site.world.raw("XLEN", "led"))

    await until(settled)
    assert (await site.chat(headers)).status_code == 401


async def test_the_model_is_listed_and_found_by_its_id(site: Site) -> None:
    bearer = await site.bearer()
    listed = (await site.client.get("/v1/models", headers=bearer)).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == (MODEL_ID, "model", "deeprequest")
    assert (model["context_length"], model["served_by"]) == (CONTEXT, "deeprequest-demo")
    for name in (MODEL_ID, "deepseek%2Dr1%2D32b"):
        assert (await site.client.get(f"/v1/models/{name}", headers=bearer)).json() == model


@pytest.mark.parametrize("name", ["gpt-4", "deepseek-ai/DeepSeek-R1", "a%2Fb", MODEL_ID + "/"])
async def test_another_model_is_not_found(site: Site, name: str) -> None:
    reply = await site.client.get(f"/v1/models/{name}", headers=await site.bearer())
    assert reply.status_code == 404
    assert error_of(reply)["code"] == "model_not_found"


async def test_a_chat_is_answered_in_one_piece(site: Site) -> None:
    await site.world.replica()
    reply = await site.chat(await site.bearer(rpm=60, tpm=10_000))
    assert reply.status_code == 200
    body = reply.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL_ID
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "stop"
    assert "hm" in str(choice["message"])
    assert choice["message"]["content"].endswith("hi")
    assert body["usage"]["completion_tokens"] == 3
    assert reply.headers["x-deeprequest-model"] == "deeprequest-demo"
    assert reply.headers["x-deeprequest-queue-ms"] == "0"
    assert reply.headers["x-ratelimit-limit-requests"] == "60"
    assert reply.headers["x-ratelimit-remaining-requests"] == "59"
    assert int(reply.headers["x-ratelimit-remaining-tokens"]) < 10_000
    assert "x-deeprequest-ignored" not in reply.headers
    assert await site.counted() == {"200": 1}


async def test_a_chat_is_answered_as_a_stream(site: Site) -> None:
    await site.world.replica()
    reply = await site.chat(await site.bearer(rpm=60), stream=True)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-ratelimit-remaining-requests"] == "59"
    *events, done = reply.text.split("\n\n")[:-1]
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content") or "" for delta in deltas).endswith("hi")
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert await site.counted() == {"200": 1}


async def test_what_is_ignored_is_named(site: Site) -> None:
    await site.world.replica()
    reply = await site.chat(await site.bearer(), colour="blue", shape="round")
    assert reply.status_code == 200
    assert set(reply.headers["x-deeprequest-ignored"].split(", ")) == {"colour", "shape"}


async def test_another_model_cannot_be_asked(site: Site) -> None:
    reply = await site.chat(await site.bearer(), model="gpt-4")
    assert reply.status_code == 404
    assert error_of(reply)["param"] == "model"


async def test_a_context_that_does_not_fit_is_told_in_numbers(site: Site) -> None:
    await site.world.replica()
    headers = await site.bearer()
    fits = (await site.chat(headers)).json()["usage"]["prompt_tokens"]
    reply = await site.chat(headers, max_tokens=CONTEXT)
    assert reply.status_code == 400
    error = error_of(reply)
    assert error["code"] == "context_length_exceeded"
    assert f"maximum context length is {CONTEXT} tokens" in error["message"]
    assert f"({fits} in the messages, {CONTEXT} in the completion)" in error["message"]


async def test_a_limit_that_binds_says_when_to_come_back(site: Site) -> None:
    await site.world.replica()
    headers = await site.bearer(rpm=1)
    assert (await site.chat(headers)).status_code == 200
    reply = await site.chat(headers)
    assert reply.status_code == 429
    assert error_of(reply)["code"] == "rate_limit_exceeded"
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"


async def test_every_answer_of_the_chat_route_is_counted_once(site: Site) -> None:
    headers = await site.bearer(rpm=3)
    await site.world.replica()
    await site.chat({})
    await site.client.post(CHAT, content=b"{", headers=headers)
    await site.chat(headers, model="gpt-4")
    await site.chat(headers)
    await site.chat(headers, stream=True)
    site.replica.lost = True
    assert (await site.chat(headers)).status_code == 503
    assert (await site.chat(headers)).status_code == 429
    await site.client.get("/v1/models")
    expected = {"401": 1, "400": 1, "404": 1, "200": 2, "503": 1, "429": 1}
    assert await site.counted() == expected


async def test_a_client_that_leaves_the_queue_is_counted_as_gone(site: Site) -> None:
    headers = await site.bearer()
    waiting = asyncio.create_task(site.chat(headers))
    while not (await site.world.pool_record()).get("waiting"):
        await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert await site.counted() == {"499": 1}


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/models", "GET"),
        ("PUT", f"/v1/models/{MODEL_ID}", "GET"),
        ("POST", "/health", "GET, HEAD"),
        ("POST", "/docs", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    site: Site, method: str, path: str, allow: str
) -> None:
    reply = await site.client.request(method, path)
    assert reply.status_code == 405
    assert reply.headers["allow"] == allow
    assert error_of(reply)["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", f"{CHAT}/"), ("GET", "/v1/models/"), ("GET", "/health/"), ("GET", "/docs/")],
)
async def test_a_trailing_slash_leads_nowhere(site: Site, method: str, path: str) -> None:
    reply = await site.client.request(
        method, path, headers={**await site.bearer(), "host": "elsewhere.example"}
    )
    assert reply.status_code == 404
    assert "location" not in reply.headers
    error_of(reply)


@pytest.mark.parametrize("path", PUBLIC_GETS)
async def test_public_pages_answer_head_and_get_alike(site: Site, path: str) -> None:
    got, headed = await site.client.get(path), await site.client.head(path)
    assert got.status_code == headed.status_code == (503 if path == "/ready" else 200)
    assert got.headers["content-type"] == headed.headers["content-type"]


async def test_ready_means_that_a_replica_is(site: Site) -> None:
    site.loads = [Load(ready=False)]
    reply = await site.client.get("/ready")
    assert reply.status_code == 503
    assert error_of(reply)["code"] == "no_replica"
    assert int(reply.headers["retry-after"]) >= 1
    site.loads.append(Load(ready=True))
    assert (await site.client.get("/ready")).json() == {"status": "ready", "replicas": 1}
    site.store_is_up = False
    assert error_of(await site.client.get("/ready"))["code"] == "admission_unavailable"


async def test_metrics_outlive_redis(site: Site) -> None:
    await site.chat({})
    site.store_is_up = False
    reply = await site.client.get("/metrics")
    assert reply.status_code == 200
    assert "deeprequest_admission_store_up 0.0" in reply.text
    assert await site.counted() == {"401": 1}
