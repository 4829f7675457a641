from typing import Any

import jsonschema
import orjson
import pytest
import requests
import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response

from cluster.request import FinishReason, RequestOutput, Usage
from cluster.text.tool_calls import written_call
from serve_app.openai import errors, sse
from serve_app.openai.chat import ChatCompletion, ChatStream
from serve_app.openai.chat_choice import ChatStyle
from serve_app.openai.completion_reference import completion_request_body, completion_schemas
from serve_app.openai.completion_schema import parse_completion_request
from serve_app.openai.completions import RawPrompt, TextCompletion, TextStream
from serve_app.openai.reference import chat_request_body, chat_responses, schemas
from serve_app.openai.response import ResponseHead, StreamUsage
from serve_app.openai.schema import parse_chat_request
from tests.serve_app.openai.answers import STRAWBERRY
from tests.serve_app.openai.test_completions import outputs, style
from tests.serve_app.test_docs import application

CHAT = "/v1/chat/completions"
HEAD = ResponseHead("chatcmpl-1", 1704476253, "deepseek-r1-32b", "fp_1")
EXAMPLES = chat_request_body("deepseek-r1-32b")["content"]["application/json"]["examples"]


RAW = completion_request_body("deepseek-r1-32b")["content"]["application/json"]["examples"]


def hold(value: Any, name: str) -> None:
    known = {**schemas(), **completion_schemas()}
    document = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": known}}
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
    assert output.usage is not None
    style = ChatStyle(format, thinking=True)
    completion = ChatCompletion(HEAD, style, echo={"metadata": {"a": "b"}})
    completion.push(0, output)
    hold(orjson.loads(completion.body(output.usage)), "ChatCompletion")
    stream = ChatStream(HEAD, style, usage=StreamUsage(True))
    raw = (stream.first() + stream.push(0, output) + stream.end(output.usage)).decode()
    for event in raw.split("\n\n")[:-2]:
        hold(orjson.loads(event.removeprefix("data: ")), "ChatCompletionChunk")


def test_answers_with_calls_keep_to_their_documented_shape() -> None:
    usage = Usage(3, 9, 0, 1)
    call = written_call("add", '{"a": 1}')
    said = RequestOutput("r", content=f"so {call}{call}", finish_reason=FinishReason.STOP)
    said.usage = usage
    style = ChatStyle("split", thinking=False, calls=True)
    completion = ChatCompletion(HEAD, style)
    completion.push(0, said)
    hold(orjson.loads(completion.body(usage)), "ChatCompletion")
    stream = ChatStream(HEAD, style)
    for event in (stream.first() + stream.push(0, said)).decode().split("\n\n")[:-1]:
        hold(orjson.loads(event.removeprefix("data: ")), "ChatCompletionChunk")


def test_errors_keep_to_their_documented_shape() -> None:
    hold(orjson.loads(errors.envelope(errors.model_not_found())), "Error")


def test_the_documented_schema_refuses_what_the_parser_refuses() -> None:
    wrongs: list[dict[str, Any]] = [
        {"temperature": 3},
        {"messages": []},
        {"stop": ["x"] * 17},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {"5": 101}},
        {"top_logprobs": 21},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "tool", "tool_call_id": "1"}]},
    ]
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


@pytest.mark.parametrize("name", sorted(RAW))
def test_examples_of_raw_prompts_are_valid_requests(name: str) -> None:
    value = RAW[name]["value"]
    hold(value, "CompletionRequest")
    request, ignored = parse_completion_request(orjson.dumps(value))
    assert (request.temperature, request.top_p) == (0.6, 0.95)
    assert ignored == ()


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]]], ids=str)
def test_every_kind_of_prompt_is_documented(prompt: Any) -> None:
    hold({"model": "m", "prompt": prompt}, "CompletionRequest")
    with pytest.raises(jsonschema.ValidationError):
        hold({"model": "m", "prompt": {"text": prompt}}, "CompletionRequest")


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("echo", [False, True])
def test_raw_completions_keep_to_their_documented_shape(
    echo: bool, logprobs: bool, ids: bool
) -> None:
    shown = style(echo=echo, logprobs=logprobs, ids=ids)
    prompt, usage = RawPrompt([5, 6, 7], 0), Usage(3, 3, 0, 0)
    completion = TextCompletion(HEAD, shown, [prompt])
    stream = TextStream(HEAD, shown, [prompt], usage=StreamUsage(True))
    raw = stream.first()
    for output in outputs([8, 9, 10], [1], prompt=prompt.token_ids if echo and logprobs else None):
        completion.push(0, output)
        raw += stream.push(0, output)
    hold(orjson.loads(completion.body(usage)), "Completion")
    for event in (raw + stream.end(usage)).decode().split("\n\n")[:-2]:
        hold(orjson.loads(event.removeprefix("data: ")), "CompletionChunk")


def read_as_documented(stream: bytes) -> None:
    """As schemathesis reads a stream of the chat route."""
    found = schemathesis.openapi.from_dict(application().openapi()).get_all_operations()
    (chat,) = (one.ok() for one in found if isinstance(one, Ok) and one.ok().path == CHAT)
    response = Response(
        status_code=200,
        headers={"content-type": ["text/event-stream"]},
        content=stream,
        request=requests.Request("POST", f"http://server{CHAT}").prepare(),
        elapsed=0.1,
        verify=True,
    )
    chat.validate_response(response, case=chat.Case(body={}))


def test_streams_keep_to_the_document_whether_they_succeed_or_fail() -> None:
    (output,) = STRAWBERRY.deltas([])
    assert output.usage is not None
    stream = ChatStream(HEAD, ChatStyle("split", thinking=True), usage=StreamUsage(True))
    begun = sse.KEEP_ALIVE + stream.first() + stream.push(0, output)
    succeeded = begun + stream.end(output.usage)
    read_as_documented(succeeded)
    read_as_documented(begun + sse.error_event(errors.replica_lost()))
    with pytest.raises(Failure):
        read_as_documented(succeeded.replace(b"chat.completion.chunk", b"chat.completion"))
