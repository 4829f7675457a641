import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.request import INT64_MAX, INT64_MIN
from serve_app.openai.body import MAX_IGNORED_NAMES
from serve_app.openai.errors import ApiError
from serve_app.openai.schema import ParsedRequest, parse_chat_request

SAY_HI = [{"role": "user", "content": "hi"}]
CANARY = "canary-3f9a"


def parse(**fields: Any) -> ParsedRequest:
    body = {"model": "deepseek-r1-32b", "messages": SAY_HI, **fields}
    return parse_chat_request(orjson.dumps(body))


def outcome(body: bytes) -> ParsedRequest | ApiError:
    """What comes of a body; any other exception fails the test."""
    try:
        return parse_chat_request(body)
    except ApiError as error:
        return error


def is_harmless(result: ParsedRequest | ApiError) -> bool:
    """A usable request, or a 400 that does not repeat what was sent."""
    if isinstance(result, ApiError):
        return result.status == 400 and CANARY not in f"{result.message}{result.param}"
    result.request.sampling_params()
    return bool(result.request.conversation())


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "be brief"}, {"role": "user", "content": content}]


TEXT = {"type": "text", "text": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 7}, "model"),
    ({"model": ""}, "model"),
    ({"model": ["deepseek-r1-32b"]}, "model"),
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": {"role": "user"}}, "messages"),
    ({"messages": [7]}, "messages[0]"),
    ({"messages": [None]}, "messages[0]"),
    ({"messages": [[]]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": SAY_HI * 2049}, "messages"),
    ({"messages": [{"role": "nobody", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "tool", "content": "hi"}]}, "messages[0].tool_call_id"),
    ({"messages": [{"role": 3, "content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": user(None)}, "messages[1].content"),
    ({"messages": user(7)}, "messages[1].content"),
    ({"messages": user({"text": "hi"})}, "messages[1].content"),
    ({"messages": user([7])}, "messages[1].content[0]"),
    ({"messages": user(["hi"])}, "messages[1].content[0]"),
    ({"messages": user([{"type": "text"}])}, "messages[1].content[0].text"),
    ({"messages": user([{"text": "hi"}])}, "messages[1].content[0].type"),
    ({"messages": user([TEXT, IMAGE])}, "messages[1].content[1].type"),
    ({"messages": user([{"type": "input_audio"}])}, "messages[1].content[0].type"),
    ({"messages": user([{"type": "file", "file": {}}])}, "messages[1].content[0].type"),
    ({"messages": user([{"type": "text", "text": 1}])}, "messages[1].content[0].text"),
    ({"messages": user([TEXT] * 2049)}, "messages"),
    ({"messages": user([TEXT] * 683) * 3}, "messages"),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
        "messages[0].tool_calls[0].id",
    ),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 32769}, "max_tokens"),
    ({"max_tokens": 10.5}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "a"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 20.5}, "top_k"),
    ({"min_p": 1.5}, "min_p"),
    ({"min_p": -0.5}, "min_p"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": "x" * 257}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": ["x", ""]}, "stop[1]"),
    ({"stop": ["x" * 257]}, "stop[0]"),
    ({"stop": [7]}, "stop[0]"),
    ({"stop": {"a": 1}}, "stop"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [0, 2**31]}, "stop_token_ids[1]"),
    ({"stop_token_ids": list(range(257))}, "stop_token_ids"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 101}, "min_tokens"),
    ({"stream": "true"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": False, "stream_options": {}}, "stream_options"),
    ({"stream": True, "stream_options": 1}, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"reasoning_format": "inline"}, "reasoning_format"),
    ({"include_reasoning": "no"}, "include_reasoning"),
    ({"reasoning": {"exclude": 1}}, "reasoning.exclude"),
    ({"user": 7}, "user"),
    ({"user": "x" * 513}, "user"),
    ({"metadata": []}, "metadata"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"metadata": {CANARY: 1}}, "metadata"),
    ({"metadata": {CANARY * 10: "a"}}, "metadata"),
    ({"metadata": {str(i): "a" for i in range(17)}}, "metadata"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"presence_penalty": "1"}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"frequency_penalty": False}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 1e-30}, "repetition_penalty"),
    ({"repetition_penalty": 2.5}, "repetition_penalty"),
    ({"penalty_scope": "thoughts"}, "penalty_scope"),
    ({"stop_scope": True}, "stop_scope"),
    ({"logit_bias": []}, "logit_bias"),
    ({"logit_bias": {CANARY: 1}}, "logit_bias"),
    ({"logit_bias": {"1.0": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"05": 1}}, "logit_bias"),
    ({"logit_bias": {"": 1}}, "logit_bias"),
    ({"logit_bias": {"5\n": 1}}, "logit_bias"),
    ({"logit_bias": {"5": 101}}, "logit_bias"),
    ({"logit_bias": {"5": -100.5}}, "logit_bias"),
    ({"logit_bias": {"5": "1"}}, "logit_bias"),
    ({"logit_bias": {"5": True}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"service_tier": "gold"}, "service_tier"),
    ({"service_tier": 1}, "service_tier"),
    ({"safety_identifier": "x" * 513}, "safety_identifier"),
    ({"logprobs": 1}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 20}, "top_logprobs"),
    ({"return_token_ids": "yes"}, "return_token_ids"),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": 1}},
        "stream_options.continuous_usage_stats",
    ),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 129}, "n"),
    ({"n": 10**18}, "n"),
    ({"n": True}, "n"),
    ({"n": "1"}, "n"),
    ({"n": 1.5}, "n"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert error.code is not None
    assert param in error.message
    assert CANARY not in error.message


BROKEN = [
    b"",
    b" ",
    b"{",
    b"[]",
    b"null",
    b"true",
    b'"hi"',
    b"7",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"model": "\xff\xfe"}',
    b'{"temperature": NaN}',
    b'{"temperature": -Infinity}',
    b'{"model": "\\ud800"}',
    b"\xef\xbb\xbf{}",
    b'{"model": "a",}',
    b"{'model': 'a'}",
    b'{"model": "a"} {"model": "b"}',
    b'{"model": "a\x00"}',
    '{"model": "a"}'.encode("utf-16"),
    b'{"seed": ' + b"9" * 5000,
    b"\x1f\x8b\x08\x00",
]


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: str(body[:30]))
def test_what_is_not_a_json_object_is_invalid_json(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat_request(body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        400,
        "invalid_json",
        None,
    )


@pytest.mark.parametrize("number", [b"9" * 5000, b"1e400", b"-1e400", b"1" + b"0" * 30])
@pytest.mark.parametrize("name", [b"seed", b"max_tokens", b"temperature", b"top_k", b"n"])
def test_numbers_without_end_are_refused(name: bytes, number: bytes) -> None:
    messages = orjson.dumps(SAY_HI)
    body = b'{"model":"m","messages":%b,"%b":%b}' % (messages, name, number)
    with pytest.raises(ApiError) as caught:
        parse_chat_request(body)
    assert caught.value.status == 400


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(INT64_MIN, 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from([-1, 0, 1, 2, 32768, 32769, 1e308, -0.0, "1", "user", "text", CANARY]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(sorted({name.split(".")[0].split("[")[0] for _, name in WRONG})) | (
    st.sampled_from(["tools", "response_format", "logprobs", "logit_bias", "unknown", "reasoning"])
)


@given(fields=st.dictionaries(NAMES, JSON, max_size=4))
@settings(deadline=None, max_examples=400)
def test_any_types_give_a_request_or_a_400(fields: dict[str, Any]) -> None:
    body = {"model": "m", "messages": SAY_HI, **fields}
    assert is_harmless(outcome(orjson.dumps(body)))


@given(parts=st.lists(JSON, max_size=3), role=JSON, at=st.sampled_from(["content", "role", "all"]))
@settings(deadline=None, max_examples=200)
def test_any_message_gives_a_request_or_a_400(parts: list[Any], role: Any, at: str) -> None:
    message: Any = {"role": "user", "content": parts}
    if at != "content":
        message = {"role": role, "content": "hi"} if at == "role" else role
    assert is_harmless(outcome(orjson.dumps({"model": "m", "messages": [message]})))


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_damaged_bytes_give_a_request_or_a_400(data: st.DataObject) -> None:
    body = bytearray(orjson.dumps({"model": "m", "messages": user([TEXT]), "seed": 3}))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    assert is_harmless(outcome(bytes(body)))


def test_the_canary_leaks_into_no_refusal_wherever_it_stands() -> None:
    for fields, param in WRONG:
        name = param.split(".")[0].split("[")[0]
        spoiled = json.loads(json.dumps(fields).replace('"hi"', f'"{CANARY}"'))
        error = refusal(**{**spoiled, "user": [CANARY], name: spoiled[name]})
        assert CANARY not in f"{error.message}{error.param}"


def test_the_refusal_forgets_what_pydantic_saw() -> None:
    error = refusal(temperature=CANARY)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_defaults_are_those_of_the_api_page() -> None:
    request, ignored = parse()
    params = request.sampling_params()
    assert (params.max_tokens, params.temperature, params.top_p) == (100, 0.6, 0.95)
    assert (params.top_k, params.min_p, params.min_tokens) == (0, 0.0, 0)
    assert (params.stop, params.stop_token_ids, params.ignore_eos) == ((), (), False)
    assert (params.penalizes, params.penalizes_thoughts, params.logit_bias) == (False, False, {})
    assert not request.stream
    assert request.stream_usage(5) == (False, False, 5)
    assert params.logprobs is None
    assert request.shown_reasoning() == "think_tags"
    assert ignored == ()


def test_every_parameter_reaches_the_engine() -> None:
    request, ignored = parse(
        max_tokens=7,
        max_completion_tokens=50,
        temperature=0,
        top_p=1,
        top_k=40,
        min_p=0.1,
        seed=INT64_MIN,
        stop=["a", "b"],
        stop_token_ids=[3, 4],
        ignore_eos=True,
        min_tokens=9,
        presence_penalty=-2,
        frequency_penalty=0.5,
        repetition_penalty=1.2,
        penalty_scope="all",
        stop_scope="all",
        logit_bias={"7": -100, "0": 0.5},
    )
    params = request.sampling_params()
    assert (params.presence_penalty, params.frequency_penalty) == (-2.0, 0.5)
    assert (params.repetition_penalty, params.penalizes_thoughts) == (1.2, True)
    assert params.logit_bias == {7: -100.0, 0: 0.5}
    assert params.stops_thoughts
    assert (params.max_tokens, params.temperature, params.top_p) == (50, 0.0, 1.0)
    assert (params.top_k, params.min_p, params.seed) == (40, 0.1, INT64_MIN)
    assert (params.stop, params.stop_token_ids) == (("a", "b"), (3, 4))
    assert (params.ignore_eos, params.min_tokens) == (True, 9)
    assert ignored == ()


def test_edges_of_the_bounds_are_inside() -> None:
    edges: list[dict[str, Any]] = [
        {"max_tokens": 1},
        {"max_tokens": 32768},
        {"temperature": 2},
        {"temperature": -0.0},
        {"top_k": -1},
        {"top_k": INT64_MAX},
        {"min_p": 1},
        {"seed": INT64_MAX},
        {"stop": ["x" * 256] * 16},
        {"stop": []},
        {"min_tokens": 100},
        {"logit_bias": {}},
        {"logit_bias": {str(i): 100 for i in range(1024)}},
        {"repetition_penalty": 0.01},
        {"presence_penalty": 2, "frequency_penalty": -2.0, "repetition_penalty": 2},
        {"service_tier": "auto"},
        {"messages": SAY_HI * 2048},
        {"messages": user("")},
        {"messages": user("nul \x00 byte")},
    ]
    for fields in edges:
        parse(**fields).request.sampling_params()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 0}, 0),
        ({"logprobs": True, "top_logprobs": 20}, 20),
        ({"logprobs": False}, None),
        ({"top_logprobs": 0}, None),
    ],
)
def test_logprobs_and_how_many_reach_the_engine(fields: dict[str, Any], told: int | None) -> None:
    assert parse(**fields).request.sampling_params().logprobs == told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, (False, False)),
        ({"include_usage": True}, (True, False)),
        ({"include_usage": True, "continuous_usage_stats": True}, (True, True)),
        ({"continuous_usage_stats": True}, (False, False)),
    ],
)
def test_streams_tell_the_counts_that_were_asked_for(
    options: dict[str, bool], told: tuple[bool, bool]
) -> None:
    request = parse(stream=True, stream_options=options).request
    assert request.stream_usage(9) == (*told, 9)


def test_minus_one_switches_top_k_off() -> None:
    assert parse(top_k=-1).request.sampling_params().top_k == 0


def test_a_seed_is_drawn_when_none_is_given() -> None:
    request = parse().request
    assert request.sampling_params().seed != request.sampling_params().seed
    assert parse(seed=0).request.sampling_params().seed == 0


def test_null_is_the_same_as_left_out() -> None:
    names = ("max_tokens", "temperature", "stop", "stream", "stream_options", "tools", "n", "foo")
    request, ignored = parse(**dict.fromkeys(names))
    assert request == parse().request
    assert ignored == ()


def test_a_whole_number_may_be_written_with_a_point() -> None:
    names = ("max_tokens", "max_completion_tokens", "n", "top_k", "seed", "min_tokens")
    request = parse(**dict.fromkeys(names, 3.0), reasoning={"max_tokens": 2e1}).request
    for name in names:
        assert repr(getattr(request, name)) == "3"
    assert request.reasoning is not None
    assert repr(request.reasoning.max_tokens) == "20"
    for value in (3.5, 1e300, -1e300):
        assert refusal(max_tokens=value).param == "max_tokens"


def test_text_parts_equal_the_joined_string() -> None:
    parts = [{"type": "text", "text": "How many r's"}, {"type": "text", "text": " in berry?"}]
    split, joined = parse(messages=user(parts)), parse(messages=user("How many r's in berry?"))
    assert split.request.conversation() == joined.request.conversation()


def test_past_assistant_turns_may_carry_thoughts_and_nulls() -> None:
    turn = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "reasoning": "hm",
        "refusal": None,
        "tool_calls": None,
    }
    request, ignored = parse(messages=[*SAY_HI, turn, *SAY_HI])
    assert [tuple(message) for message in request.conversation()] == [
        ("user", "hi", "", ""),
        ("assistant", "", "hm", ""),
        ("user", "hi", "", ""),
    ]
    assert ignored == ()


def test_unknown_fields_are_accepted_and_named() -> None:
    message = {"role": "user", "content": [{**TEXT, "cache": 1}], "name": "ann"}
    _, ignored = parse(
        store=True,
        verbosity="low",
        messages=[message, message],
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )
    assert ignored == (
        "store",
        "verbosity",
        "stream_options.include_obfuscation",
        "messages.name",
        "messages.content.cache",
    )


@given(names=st.lists(st.text(min_size=0, max_size=80), max_size=60))
@settings(deadline=None, max_examples=100)
def test_ignored_names_are_safe_in_a_header(names: list[str]) -> None:
    unknown = {f"{name}?": 1 for name in names}
    _, ignored = parse(**unknown)
    assert len(ignored) <= MAX_IGNORED_NAMES
    header = ",".join(ignored)
    assert len(header) <= MAX_IGNORED_NAMES * 90
    assert all(char.isascii() and (char.isalnum() or char in "_.-,") for char in header)


def test_token_ids_are_held_against_the_vocabulary() -> None:
    request = parse(stop_token_ids=[5, 152064]).request
    request.check_vocabulary(152065)
    with pytest.raises(ApiError) as caught:
        request.check_vocabulary(152064)
    assert caught.value.param == "stop_token_ids[1]"
    biased = parse(logit_bias={"152063": 1, "152064": 1}).request
    biased.check_vocabulary(152065)
    with pytest.raises(ApiError) as caught:
        biased.check_vocabulary(152064)
    assert (caught.value.param, caught.value.code) == ("logit_bias", "invalid_value")


def test_the_newer_name_of_the_end_user_wins() -> None:
    assert parse().request.end_user is None
    assert parse(user="ann").request.end_user == "ann"
    assert parse(user="ann", safety_identifier="bob").request.end_user == "bob"
