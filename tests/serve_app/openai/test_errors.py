import json

import pytest

from serve_app.openai import errors
from serve_app.openai.errors import ApiError, envelope

EVERY_ERROR = [
    errors.invalid_json(),
    errors.invalid_type("temperature", "expected a number"),
    errors.invalid_value("messages[1].content", "no"),
    errors.missing_parameter("model"),
    errors.unsupported_parameter("tools", "Leave it out."),
    errors.context_length_exceeded(4000, 100, 4096),
    errors.prompt_too_long(4096),
    errors.invalid_api_key(),
    errors.permission_denied(),
    errors.model_not_found(),
    errors.unknown_url(),
    errors.method_not_allowed({"allow": "POST"}),
    errors.request_timeout(),
    errors.body_too_large(10),
    errors.unsupported_media_type(),
    errors.unsupported_content_encoding(),
    errors.headers_too_large(10),
    errors.engine_error("engine_numeric_error"),
    errors.engine_error(),
    errors.internal_error("req_1"),
    errors.no_replica(20),
    errors.replica_lost(),
    errors.generation_timeout(),
]


@pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: f"{error.status}-{error.code}")
def test_envelope_holds_exactly_the_four_fields(error: ApiError) -> None:
    body = json.loads(envelope(error))
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert isinstance(body["error"]["type"], str)
    assert 400 <= error.status < 600
    assert all(name == name.lower() and value.isascii() for name, value in error.headers.items())


@pytest.mark.parametrize(
    "error", [error for error in EVERY_ERROR if error.status == 503], ids=lambda e: e.code
)
def test_every_refusal_for_now_says_when_to_retry(error: ApiError) -> None:
    assert 1 <= int(error.headers["retry-after"]) <= 110


@pytest.mark.parametrize(
    ("wait_s", "header", "milliseconds"),
    [(0.0, "1", "1"), (0.25, "1", "250"), (11.2, "12", "11200"), (3600.0, "110", "110000")],
)
def test_retry_after_is_rounded_up_and_stays_within_what_clients_accept(
    wait_s: float, header: str, milliseconds: str
) -> None:
    error = errors.no_replica(wait_s)
    assert error.headers["retry-after"] == header
    assert error.headers["retry-after-ms"] == milliseconds


def test_context_error_names_both_numbers() -> None:
    message = errors.context_length_exceeded(4000, 100, 4096).message
    assert "4000" in message
    assert "100 in the completion" in message
    assert "4096" in message
