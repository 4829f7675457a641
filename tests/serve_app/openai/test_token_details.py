import json
from pathlib import Path
from typing import Any

import pytest

from cluster.request import FinishReason, RequestOutput, TokenLogprobs, Usage
from cluster.text.tokenizer import Tokenizer
from serve_app.openai.chat import ChatCompletion, ChatStream
from serve_app.openai.chat_choice import ChatStyle
from serve_app.openai.reasoning_format import ReasoningFormat
from serve_app.openai.response import ResponseHead
from serve_app.openai.token_details import TokenDetails
from tests.serve_app.openai.test_chat import chunks

TOKENIZER = Tokenizer(Path(__file__).resolve().parents[3] / "configs/models/deeprequest-demo")
HEAD = ResponseHead("chatcmpl-1", 1704476253, "deepseek-r1-32b", "fp_1")
CLOSE, EOS = TOKENIZER.think_end_id, TOKENIZER.eos_id
THOUGHT, ANSWER = TOKENIZER.encode_content("hm"), TOKENIZER.encode_content("yes")
IDS = [*THOUGHT, CLOSE, *ANSWER, EOS]


def told(count: int) -> list[TokenLogprobs]:
    return [TokenLogprobs(-1.0, [1], [-1.0])] * count


def outputs() -> list[RequestOutput]:
    """Thoughts; then their end and the answer; then nothing but the end of the sequence."""
    last = RequestOutput("r", token_ids=[EOS], logprobs=told(1), usage=Usage(4, len(IDS), 0, 2))
    last.finish_reason = FinishReason.STOP
    middle = [CLOSE, *ANSWER]
    return [
        RequestOutput("r", reasoning="hm", token_ids=THOUGHT, logprobs=told(len(THOUGHT))),
        RequestOutput("r", "", "yes", True, middle, logprobs=told(len(middle))),
        last,
    ]


def style(format: ReasoningFormat, *, logprobs: bool = True, ids: bool = True) -> ChatStyle:
    return ChatStyle(format, True, False, TOKENIZER, 1 if logprobs else None, ids)


def details(format: ReasoningFormat, *, ids: bool = True) -> TokenDetails:
    found = style(format, ids=ids).details()
    assert found is not None
    return found


def only_choice(completion: ChatCompletion) -> dict[str, Any]:
    (choice,) = json.loads(completion.body(Usage(4, len(IDS), 0, 2)))["choices"]
    return dict(choice)


@pytest.mark.parametrize("format", ["think_tags", "split", "hidden"])
def test_chunks_joined_tell_what_the_whole_tells(format: ReasoningFormat) -> None:
    completion = ChatCompletion(HEAD, style(format))
    stream = ChatStream(HEAD, style(format))
    raw = stream.first()
    for output in outputs():
        completion.push(0, output)
        raw += stream.push(0, output)
    raw += stream.end(Usage(4, len(IDS), 0, 2))
    whole = only_choice(completion)
    pieces = [
        chunk["choices"][0]
        for chunk in chunks(raw.decode().replace("data: ", "").split("\n\n")[:-1])
    ]
    entries = [entry for piece in pieces[1:] for entry in piece["logprobs"]["content"]]
    assert entries == whole["logprobs"]["content"]
    assert [token for piece in pieces for token in piece.get("token_ids", [])] == whole["token_ids"]
    assert whole["token_ids"] == ([*ANSWER, EOS] if format == "hidden" else IDS)
    assert pieces[0]["logprobs"] is None


def test_what_was_not_asked_for_is_not_told() -> None:
    completion = ChatCompletion(HEAD, style("split", logprobs=False))
    for output in outputs():
        output.logprobs = None
        completion.push(0, output)
    choice = only_choice(completion)
    assert choice["logprobs"] is None
    assert choice["token_ids"] == IDS
    only_logprobs = details("split", ids=False)
    only_logprobs.push(outputs()[0], "")
    assert only_logprobs.take() == {"logprobs": {"content": [], "refusal": None}}


def test_hidden_thoughts_stay_hidden_when_they_never_end() -> None:
    hidden = details("hidden")
    hidden.push(outputs()[0], "")
    assert hidden.take() == {"logprobs": {"content": [], "refusal": None}, "token_ids": []}
