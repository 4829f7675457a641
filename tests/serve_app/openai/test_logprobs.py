"""Entries against the text itself: the real text path of the engine, cut into steps at will."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.chat_completion import ChoiceLogprobs

from cluster.engine.output_processor import OutputProcessor
from cluster.request import (
    EngineCoreOutput,
    EngineRequest,
    FinishReason,
    RequestOutput,
    SamplingParams,
    ThinkingRule,
    TokenLogprobs,
)
from cluster.text.tokenizer import Tokenizer
from serve_app.deltas.stream import merged
from serve_app.openai.logprobs import ContentLogprobs, token_text
from serve_app.openai.reasoning_format import ReasoningFormat, ReasoningFormatter

TOKENIZER = Tokenizer(Path(__file__).resolve().parents[3] / "configs/models/deeprequest-demo")
PROMPT = TOKENIZER.encode_content("hi")
FORMATS: tuple[ReasoningFormat, ...] = ("think_tags", "split", "hidden")
BERRY = TOKENIZER.encode_content("🍓")
CLOSE, EOS = TOKENIZER.think_end_id, TOKENIZER.eos_id
IDS = st.lists(
    st.integers(0, TOKENIZER.size - 1)
    | st.sampled_from([CLOSE, EOS, *TOKENIZER.encode_content("\n\n ab"), *BERRY, *BERRY]),
    min_size=1,
    max_size=25,
)


def deltas(
    ids: list[int], cuts: list[int], *, thinking: bool = True, stop: tuple[str, ...] = ()
) -> list[RequestOutput]:
    """What the engine's text side makes of these ids when steps end at `cuts`."""
    texts = OutputProcessor(TOKENIZER)
    rule = ThinkingRule(CLOSE) if thinking else None
    params = SamplingParams(stop=stop, ignore_eos=True, logprobs=1, thinking=rule)
    texts.add(EngineRequest("r", PROMPT, params))
    made: list[RequestOutput] = []
    places = [*sorted({cut for cut in cuts if 0 < cut < len(ids)}), len(ids)]
    for start, end in zip([0, *places], places, strict=False):
        told = [TokenLogprobs(-float(at), [ids[at]], [-float(at)]) for at in range(start, end)]
        finish = FinishReason.LENGTH if end == len(ids) else None
        outputs, _ = texts.process(
            [EngineCoreOutput("r", ids[start:end], finish, logprobs=told)],
        )
        made += outputs
    return made


def told(
    outputs: list[RequestOutput],
    format: ReasoningFormat,
    *,
    thinking: bool = True,
    continued: bool = False,
    top: int = 1,
) -> tuple[str, list[list[dict[str, Any]]]]:
    """(the content, the entries of each delta)."""
    formatter = ReasoningFormatter(format, thinking=thinking, continued=continued)
    logprobs = ContentLogprobs(TOKENIZER, format, top, thinking=thinking, continued=continued)
    text, entries = "", []
    for output in outputs:
        content = "".join(delta.content for delta in formatter.push(output))
        entries.append(logprobs.push(output, content))
        text += content
    return text, entries


def flat(entries: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return list(chain.from_iterable(entries))


def joined(entries: list[list[dict[str, Any]]]) -> str:
    data = b"".join(bytes(entry["bytes"]) for entry in flat(entries))
    return data.decode(errors="replace")


@given(ids=IDS, cuts=st.lists(st.integers(0, 25)), thinking=st.booleans(), continued=st.booleans())
@pytest.mark.parametrize("format", FORMATS)
@settings(deadline=None, max_examples=200)
def test_the_bytes_joined_are_the_content_however_steps_and_readers_cut_it(
    format: ReasoningFormat, ids: list[int], cuts: list[int], thinking: bool, continued: bool
) -> None:
    outputs = deltas(ids, cuts, thinking=thinking)
    content, entries = told(outputs, format, thinking=thinking, continued=continued)
    assert joined(entries) == content
    _, at_once = told(merged(outputs), format, thinking=thinking, continued=continued)
    assert flat(entries) == flat(at_once)


@given(ids=IDS, cuts=st.lists(st.integers(0, 25)))
@pytest.mark.parametrize("format", FORMATS)
@settings(deadline=None, max_examples=200)
def test_a_stop_string_leaves_out_the_tokens_that_it_took(
    format: ReasoningFormat, ids: list[int], cuts: list[int]
) -> None:
    ids = [CLOSE, *TOKENIZER.encode_content("go on"), *ids]
    content, entries = told(deltas(ids, cuts, stop=("a", "n", "\n\n")), format)
    assert joined(entries) == content
    assert all(entry["bytes"] for entry in flat(entries))


@given(ids=IDS, cuts=st.lists(st.integers(0, 25)))
@pytest.mark.parametrize("format", FORMATS)
@settings(deadline=None, max_examples=100)
def test_entries_come_with_the_text_that_they_complete_and_not_before(
    format: ReasoningFormat, ids: list[int], cuts: list[int]
) -> None:
    outputs = deltas(ids, cuts)
    for end in range(1, len(outputs)):
        content, entries = told(outputs[:end], format)
        assert content.startswith(joined(entries))


@pytest.mark.parametrize("format", FORMATS[1:])
def test_thoughts_are_told_only_where_content_shows_them(format: ReasoningFormat) -> None:
    ids = [*TOKENIZER.encode_content("hm"), CLOSE, *TOKENIZER.encode_content("\n\nyes"), EOS]
    _, entries = told(deltas(ids, [1, 2, 3]), format)
    assert [entry["token"] for entry in flat(entries)] == [
        TOKENIZER.decode([token]) for token in TOKENIZER.encode_content("yes")
    ]
    cut_off, _ = told(deltas(ids[:2], []), format)
    assert cut_off == ""


def test_the_opening_tag_is_certain_as_the_template_wrote_it() -> None:
    _, entries = told(deltas(TOKENIZER.encode_content("hm"), []), "think_tags")
    opening = flat(entries)[:2]
    assert [entry["token"] for entry in opening] == ["<think>", "\n"]
    for entry in opening:
        assert entry["logprob"] == 0.0
        (likeliest,) = entry["top_logprobs"]
        assert likeliest == {key: entry[key] for key in ("token", "logprob", "bytes")}
    _, entries = told(deltas([5], []), "think_tags", top=0)
    assert flat(entries)[0]["top_logprobs"] == []


def test_a_part_of_a_character_gives_its_real_bytes() -> None:
    assert len(BERRY) > 1
    _, entries = told(deltas(BERRY, [1], thinking=False), "split", thinking=False)
    assert entries[:-1] == [[]] * (len(entries) - 1), "nothing before the character is whole"
    assert joined(entries) == "🍓"
    for entry in entries[-1]:
        assert "\ufffd" not in entry["token"]
        assert entry["token"] == token_text(bytes(entry["bytes"]))
    assert token_text(b" \xf0\x9f") == r" \xf0\x9f"


def test_entries_have_the_shape_of_the_sdk() -> None:
    output = RequestOutput("r", content=TOKENIZER.decode([5]), token_ids=[5])
    output.logprobs = [TokenLogprobs(-0.5, [5, EOS], [-0.5, -2.0])]
    (entry,) = ContentLogprobs(TOKENIZER, "split", 2, thinking=False).push(output, output.content)
    parsed = ChoiceLogprobs.model_validate({"content": [entry], "refusal": None}, strict=True)
    assert parsed.content is not None
    assert parsed.content[0].top_logprobs[1].token == "<｜end▁of▁sentence｜>"  # noqa: RUF001
    assert parsed.content[0].top_logprobs[1].logprob == -2.0
    json.dumps(entry, allow_nan=False)
