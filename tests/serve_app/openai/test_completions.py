"""Raw completions, whole and streamed, from the engine's real text path cut into steps at will."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion

from cluster.engine.output_processor import OutputProcessor
from cluster.request import (
    EngineCoreOutput,
    EngineRequest,
    FinishReason,
    RequestOutput,
    SamplingParams,
    TokenLogprobs,
    Usage,
)
from serve_app.deltas.stream import merged
from serve_app.openai.completions import RawPrompt, TextCompletion, TextStream, TextStyle
from serve_app.openai.response import ResponseHead, StreamUsage
from tests.serve_app.openai.test_logprobs import IDS, TOKENIZER

HEAD = ResponseHead("cmpl-1", 1704476253, "deepseek-r1-32b", "fp_1")
USAGE = Usage(4, 7, 0, 0)
BOS, EOS = TOKENIZER.bos_id, TOKENIZER.eos_id
BERRY = TOKENIZER.encode_content("🍓")
"""Several ids, none of them a character."""
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def told(ids: list[int], seed: int = 0) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(-1.0 - at - seed, [(token_id + 1) % 300], [-0.5])
        for at, token_id in enumerate(ids)
    ]


def outputs(
    ids: list[int], cuts: list[int], stop: tuple[str, ...] = (), prompt: list[int] | None = None
) -> list[RequestOutput]:
    """What the engine's text side makes of it; a `prompt` is judged first, in pieces as well."""
    texts = OutputProcessor(TOKENIZER)
    params = SamplingParams(stop=stop, ignore_eos=True, logprobs=1, max_tokens=100)
    texts.add(EngineRequest("r", prompt or [BOS], params))
    made: list[RequestOutput] = []

    def step(output: EngineCoreOutput) -> None:
        made.extend(texts.process([output])[0])

    judged = told((prompt or [BOS])[1:], 50)
    places = [*sorted({cut for cut in cuts if 0 < cut < len(judged)}), len(judged)]
    for start, end in zip([0, *places], places, strict=False):
        step(EngineCoreOutput("r", [], prompt_logprobs=judged[start:end] or None))
    known = told(ids)
    places = [*sorted({cut for cut in cuts if 0 < cut < len(ids)}), len(ids)]
    for start, end in zip([0, *places], places, strict=False):
        finish = FinishReason.LENGTH if end == len(ids) else None
        step(EngineCoreOutput("r", ids[start:end], finish, logprobs=known[start:end]))
    return made


def style(*, echo: bool = False, logprobs: bool = True, ids: bool = True) -> TextStyle:
    return TextStyle(TOKENIZER, echo, logprobs, ids)


def whole(shown: TextStyle, prompt: RawPrompt, found: list[RequestOutput]) -> dict[str, Any]:
    completion = TextCompletion(HEAD, shown, [prompt])
    for output in found:
        completion.push(0, output)
    body = completion.body(USAGE)
    if not (shown.echo and shown.logprobs):  # the SDK's type forgets that a first token has no past
        Completion.model_validate_json(body)
    (choice,) = json.loads(body)["choices"]
    return dict(choice)


def events(raw: bytes) -> list[dict[str, Any]]:
    lines = [line for line in raw.decode().split("\n\n") if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


def streamed(shown: TextStyle, prompt: RawPrompt, found: list[RequestOutput]) -> dict[str, Any]:
    """The one choice of a stream, joined."""
    stream = TextStream(HEAD, shown, [prompt])
    raw = stream.first() + b"".join(stream.push(0, output) for output in found) + stream.end(USAGE)
    joined: dict[str, Any] = {"index": 0, "text": "", "logprobs": None}
    for event in events(raw):
        (choice,) = event["choices"]
        joined["text"] += choice.pop("text")
        lists = choice.pop("logprobs")
        if lists is not None:
            joined["logprobs"] = joined["logprobs"] or {name: [] for name in LISTS}
            for name in LISTS:
                joined["logprobs"][name] += lists[name]
        for name in ("prompt_token_ids", "token_ids"):
            if name in choice:
                joined[name] = joined.get(name, []) + choice.pop(name)
        joined |= choice
    return joined


@given(
    prompt=IDS,
    ids=IDS,
    cuts=st.lists(st.integers(0, 25)),
    stop=st.sampled_from([(), ("a",), ("\n\n", "ab")]),
    echo=st.booleans(),
    logprobs=st.booleans(),
    slow=st.booleans(),
)
@settings(deadline=None, max_examples=200)
def test_a_stream_joined_is_the_whole_however_it_was_cut(
    prompt: list[int],
    ids: list[int],
    cuts: list[int],
    stop: tuple[str, ...],
    echo: bool,
    logprobs: bool,
    slow: bool,
) -> None:
    shown, raw = style(echo=echo, logprobs=logprobs), RawPrompt([BOS, *prompt], 1)
    judged = raw.token_ids if echo and logprobs else None
    found = outputs(ids, cuts, stop, judged)
    choice = whole(shown, raw, found)
    assert streamed(shown, raw, merged(found) if slow else found) == choice
    text = "".join(output.content for output in found)
    assert choice["text"] == (TOKENIZER.decode(prompt) if echo else "") + text
    if logprobs:
        lists = choice["logprobs"]
        given_back = raw.token_ids if echo else []
        assert len(lists["tokens"]) == len(given_back) + len(choice["token_ids"])
        assert {len(lists[name]) for name in LISTS} == {len(lists["tokens"])}
        assert lists["text_offset"] == sorted(lists["text_offset"])


def test_an_echo_tells_every_token_of_the_prompt_but_the_first() -> None:
    prompt = [BOS, *TOKENIZER.encode_content("a 🍓b")]
    ids = [*TOKENIZER.encode_content("cd"), EOS]
    found = outputs(ids, [], prompt=prompt)
    choice = whole(style(echo=True), RawPrompt(prompt, 1), found)
    assert choice["text"] == "a 🍓bcd"
    lists = choice["logprobs"]
    assert lists["token_logprobs"][0] is None
    assert lists["top_logprobs"][0] is None
    expected = [one.logprob for one in told(prompt[1:], 50)] + [one.logprob for one in told(ids)]
    assert lists["token_logprobs"][1:] == expected
    for token_id, name, top, logprob in zip(
        [*prompt, *ids][1:],
        lists["tokens"][1:],
        lists["top_logprobs"][1:],
        lists["token_logprobs"][1:],
        strict=True,
    ):
        likeliest = TOKENIZER.token_bytes((token_id + 1) % 300)
        assert top[likeliest.decode("utf-8", "backslashreplace")] == -0.5
        assert top[name] == logprob
    offsets = dict(zip(lists["tokens"], lists["text_offset"], strict=True))
    assert offsets["\\xf0"] == 2
    assert lists["text_offset"][:2] == [0, 0], "nobody wrote the first token"
    assert lists["text_offset"][-1] == len(choice["text"]), "the end of the sequence shows nothing"


def test_a_prompt_of_ids_is_given_back_with_its_control_tokens() -> None:
    prompt = [BOS, *TOKENIZER.encode_content("hi")]
    choice = whole(style(echo=True, logprobs=False), RawPrompt(prompt, 0), outputs([], []))
    assert choice["text"] == TOKENIZER.decode(prompt)
    assert choice["logprobs"] is None


@pytest.mark.parametrize("echo", [False, True])
def test_half_a_character_at_the_end_of_a_prompt_is_not_completed(echo: bool) -> None:
    prompt = RawPrompt([*TOKENIZER.encode_content("hi "), *BERRY[:2]], 0)
    found = outputs([*BERRY[2:], *TOKENIZER.encode_content("x")], [1])
    text = whole(style(echo=echo, logprobs=False), prompt, found)["text"]
    said = b"".join(map(TOKENIZER.token_bytes, BERRY[2:])).decode(errors="replace") + "x"
    assert text == ("hi \ufffd" if echo else "") + said
    assert "🍓" not in text


def test_choices_of_several_prompts_have_their_indices() -> None:
    prompts = [RawPrompt([BOS, *TOKENIZER.encode_content(text)], 1) for text in "pq"]
    completion = TextCompletion(HEAD, style(echo=True), prompts, n=2, runs=2)
    stream = TextStream(HEAD, style(echo=True), prompts, n=2, usage=StreamUsage(True, True, 4))
    raw = stream.first()
    for index in (0, 2, 1, 3):
        ids, judged = TOKENIZER.encode_content("abcd"[index]), prompts[index // 2].token_ids
        for output in outputs(ids, [], prompt=judged if index % 2 == 0 else None):
            completion.push(index, output)
            raw += stream.push(index, output)
    raw += stream.end(USAGE)
    choices = json.loads(completion.body(USAGE))["choices"]
    assert [(c["index"], c["text"]) for c in choices] == [
        (0, "pa"),
        (1, "pb"),
        (2, "qc"),
        (3, "qd"),
    ]
    found = events(raw)
    for choice in choices:
        mine = [
            one for event in found for one in event["choices"] if one["index"] == choice["index"]
        ]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert sum(one["finish_reason"] is not None for one in mine) == 1
        tokens = [token for one in mine for token in (one["logprobs"] or {}).get("tokens", [])]
        assert tokens == choice["logprobs"]["tokens"]
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == USAGE.completion_tokens
    assert all(event["usage"]["prompt_tokens"] == 4 for event in found)


def test_the_best_are_those_whose_tokens_are_likeliest_on_average() -> None:
    means = {"a": -2.0, "bb": -0.5, "c": -1.0, "ddd": -3.0}
    prompts = [RawPrompt([BOS], 1)] * 2
    completion = TextCompletion(HEAD, style(logprobs=False), prompts, n=2, runs=4)
    for index, (text, mean) in enumerate([*means.items(), *means.items()]):
        ids = [TOKENIZER.encode_content(letter)[0] for letter in text]
        said = RequestOutput("r", content=text, token_ids=ids, finish_reason=FinishReason.LENGTH)
        said.logprobs, said.usage = [TokenLogprobs(mean)] * len(ids), USAGE
        completion.push(index, said)
    choices = json.loads(completion.body(USAGE))["choices"]
    assert [(one["index"], one["text"]) for one in choices] == list(enumerate(["bb", "c"] * 2))
    assert all(one["logprobs"] is None for one in choices)


def test_probabilities_stay_below_one() -> None:
    choice = whole(style(), RawPrompt([BOS], 1), outputs(TOKENIZER.encode_content("abc"), [1]))
    for top in choice["logprobs"]["top_logprobs"]:
        assert len(top) == 2
        assert sum(map(math.exp, top.values())) <= 1
