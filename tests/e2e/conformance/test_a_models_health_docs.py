"""Checklist A: models, health, documents."""

import json
import re

import openai
import pytest

from tests.e2e.conformance.wire import CHAT, MODEL, asked, counted, error_of, get, post
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e


def test_a01_models_are_listed(service: Service) -> None:
    body = get(service, "/v1/models").json()
    assert body["object"] == "list"
    (model,) = body["data"]
    assert model["id"] == MODEL
    assert model["object"] == "model"
    assert isinstance(model["created"], int)
    assert isinstance(model["owned_by"], str)


def test_a02_a_model_is_retrieved_by_its_id(service: Service, client: openai.OpenAI) -> None:
    (listed,) = get(service, "/v1/models").json()["data"]
    assert get(service, f"/v1/models/{MODEL}").json() == listed
    assert client.models.retrieve(MODEL).id == MODEL
    error_of(get(service, "/v1/models/deepseek%2Fr1"), 404, "model_not_found")


def test_a03_an_unknown_model_is_not_found(service: Service, client: openai.OpenAI) -> None:
    error = error_of(get(service, "/v1/models/nope"), 404, "model_not_found")
    assert error["param"] == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/nope")


def test_a04_the_documents_answer_and_list_every_route(service: Service) -> None:
    for path in ("/docs", "/redoc"):
        assert service.get(path)[0] == 200
    document = json.loads(service.get("/openapi.json")[1])
    assert document["openapi"].startswith("3.1")
    expected = {CHAT, f"{CHAT}/render", f"{CHAT}/{{id}}/cancel", "/tokenize", "/detokenize"}
    expected |= {"/v1/models", "/v1/models/{model_id}", "/health", "/ready", "/metrics", "/version"}
    assert expected <= set(document["paths"])


def test_a05_health_needs_no_key_and_ready_tells_of_replicas(service: Service) -> None:
    assert service.get("/health")[0] == 200
    status, body = service.get("/ready")
    assert status == 200
    assert json.loads(body)["replicas"] == 1


def test_a06_metrics_parse_rise_and_hold_no_prompt_and_no_key(service: Service) -> None:
    marker = "xylophonequartz"

    before = counted(service, "deeprequest_requests_total", status="200")
    assert post(service, asked(marker, max_tokens=1)).status_code == 200
    assert counted(service, "deeprequest_requests_total", status="200") == before + 1
    text = service.get("/metrics")[1]
    assert marker not in text
    assert service.key not in text
    assert not re.search(r"dr-[A-Za-z0-9]{8}-", text)


def test_a07_unknown_paths_and_wrong_methods_get_the_envelope(service: Service) -> None:
    error_of(get(service, "/v1/nope"), 404)
    reply = get(service, CHAT)
    error_of(reply, 405)
    assert reply.headers["allow"] == "POST"


def test_a07_the_responses_api_is_pointed_to_chat_completions(service: Service) -> None:
    reply = post(service, {"model": MODEL, "input": "hi"}, path="/v1/responses")
    assert CHAT in error_of(reply, 404)["message"]
