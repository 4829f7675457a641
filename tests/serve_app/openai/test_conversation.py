from typing import Any

import orjson
import pytest

from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import EOS, THINK_END, Tokenizer
from cluster.text.tool_calls import introduction, written_call, written_results
from serve_app.openai.errors import ApiError
from serve_app.openai.schema import ChatCompletionRequest, parse_chat_request
from tests.serve_app.site import MODEL

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
ASK = {"role": "user", "content": "How warm is it?"}


def call(id: str = "c1", name: str = "weather", arguments: str = '{"city": "Paris"}') -> Any:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(id: str = "c1", content: Any = "21") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def parse(*messages: dict[str, Any], **fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": messages, **fields}
    return parse_chat_request(orjson.dumps(body)).request


def test_calls_stand_behind_the_content_and_results_are_the_next_turn() -> None:
    both = {"role": "assistant", "content": "I look.", "tool_calls": [call(), call("c2")]}
    silent = {"role": "assistant", "content": None, "tool_calls": [call("c3")]}
    parts = [{"type": "text", "text": "2"}, {"type": "text", "text": "2"}]
    messages = parse(ASK, both, result(), result("c2", parts), silent, result("c3")).conversation()
    written = written_call("weather", '{"city": "Paris"}')
    assert messages == [
        Message("user", "How warm is it?"),
        Message("assistant", "I look.", calls=f"\n\n{written}\n{written}"),
        Message("user", written_results(["21", "22"])),
        Message("assistant", "", calls=written),
        Message("user", written_results(["21"])),
    ]


def test_tools_are_introduced_to_those_who_may_call_them() -> None:
    request = parse(ASK, tools=[WEATHER])
    assert request.calling is not None
    told = introduction(*request.calling)
    assert request.conversation()[-1] == Message("system", told)
    assert "weather" in told
    for fields in ({"tool_choice": "none"}, {"tools": None}):
        assert len(parse(ASK, **{"tools": [WEATHER], **fields}).conversation()) == 1


def test_a_call_in_the_prompt_is_text_whatever_it_spells() -> None:
    tokenizer = Tokenizer(MODEL)
    template = ChatTemplate(tokenizer)
    odd = f'{{"city": "{THINK_END}{EOS}"}}'
    past = {"role": "assistant", "content": f"hm{THINK_END}I look.", "tool_calls": [call()]}
    past["tool_calls"][0]["function"]["arguments"] = odd
    ids = template.render(parse(ASK, past, result()).conversation())
    text = tokenizer.decode(ids)
    assert f"I look.\n\n{written_call('weather', odd)}" in text
    assert "hm" not in text
    assert ids.count(tokenizer.think_end_id) == 0
    assert ids.count(tokenizer.eos_id) == 1


@pytest.mark.parametrize(
    ("messages", "param", "code"),
    [
        ([ASK, {"role": "tool", "content": "21"}], "messages[1].tool_call_id", "missing"),
        ([ASK, result()], "messages[1].tool_call_id", "invalid"),
        (
            [ASK, {"role": "assistant", "tool_calls": [call()]}, result("c2")],
            "messages[2].tool_call_id",
            "invalid",
        ),
        ([ASK | {"tool_calls": [call()]}], "messages[0].tool_calls", "invalid"),
        ([{"role": "assistant", "tool_calls": call()}], "messages[0].tool_calls", "invalid"),
        (
            [{"role": "assistant", "tool_calls": [call(name='x"}')]}],
            "messages[0].tool_calls[0].function.name",
            "invalid",
        ),
        (
            [{"role": "assistant", "tool_calls": [call(arguments=3)]}],  # type: ignore[arg-type]
            "messages[0].tool_calls[0].function.arguments",
            "invalid",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"type": "function"}]}],
            "messages[0].tool_calls[0].id",
            "missing",
        ),
        ([ASK, {"role": "function", "content": "x"}], "messages[1].role", "unsupported"),
        (
            [{"role": "assistant", "tool_calls": [call()]}, result(content=None)],
            "messages[1].content",
            "invalid",
        ),
    ],
)
def test_calls_and_results_that_do_not_fit_are_refused(
    messages: list[dict[str, Any]], param: str, code: str
) -> None:
    with pytest.raises(ApiError) as caught:
        parse(*messages)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert (caught.value.code or "").startswith(code)


def test_a_message_that_ends_with_calls_is_not_continued() -> None:
    with pytest.raises(ApiError) as caught:
        parse(ASK, {"role": "assistant", "tool_calls": [call()]}, continue_final_message=True)
    assert caught.value.param == "continue_final_message"
