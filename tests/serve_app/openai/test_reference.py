from typing import Any

import jsonschema
import orjson
import pytest

from cluster.request import FinishReason
from serve_app.openai import errors
from serve_app.openai.chat import ChatCompletion, ChatStream, ResponseHead
from serve_app.openai.reference import chat_request_body, chat_responses, schemas
from serve_app.openai.schema import parse_chat_request
from tests.serve_app.openai.answers import STRAWBERRY

HEAD = ResponseHead("chatcmpl-1", 1704476253, "deepseek-r1-32b", "fp_1")
EXAMPLES = chat_request_body("deepseek-r1-32b")["content"]["application/json"]["examples"]


def hold(value: Any, name: str) -> None:
    document = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas()}}
    jsonschema.Draft202012Validator(document).validate(value)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_are_valid_requests_with_the_recommended_values(name: str) -> None:
    value = EXAMPLES[name]["value"]
    hold(value, "ChatCompletionRequest")
    request, ignored = parse_chat_request(orjson.dumps(value))
    assert (request.temperature, request.top_p) == (0.6, 0.95)
    assert ignored == ()


@pytest.mark.parametrize("format", ["think_tags", "split", "hidden"])
def test_answers_keep_to_their_documented_shape(format: Any) -> None:
    (output,) = STRAWBERRY.deltas([])
    completion = ChatCompletion(HEAD, format, thinking=True, metadata={"a": "b"})
    completion.push(output)
    hold(orjson.loads(completion.body(output)), "ChatCompletion")
    stream = ChatStream(HEAD, format, thinking=True, include_usage=True)
    raw = (stream.first() + stream.push(output)).decode()
    for event in raw.split("\n\n")[:-2]:
        hold(orjson.loads(event.removeprefix("data: ")), "ChatCompletionChunk")


def test_errors_keep_to_their_documented_shape() -> None:
    hold(orjson.loads(errors.envelope(errors.model_not_found())), "Error")


def test_the_documented_schema_refuses_what_the_parser_refuses() -> None:
    wrongs: list[dict[str, Any]] = [{"temperature": 3}, {"messages": []}, {"stop": ["x"] * 17}]
    for wrong in wrongs:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **wrong}
        with pytest.raises(jsonschema.ValidationError):
            hold(body, "ChatCompletionRequest")


def test_every_documented_status_has_a_meaning() -> None:
    responses = chat_responses()
    assert {200, 400, 401, 404, 413, 415, 429, 500, 503} <= set(responses)
    assert all(response["description"] for response in responses.values())
    assert (
        FinishReason.STOP
        in schemas()["ChatCompletion"]["properties"]["choices"]["items"]["properties"][
            "finish_reason"
        ]["enum"]
    )
