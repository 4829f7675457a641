import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engine.output_processor import OutputProcessor
from cluster.request import (
    EngineCoreOutput,
    EngineRequest,
    FinishReason,
    RequestOutput,
    SamplingParams,
    ThinkingRule,
    TokenLogprobs,
    Usage,
)
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import ASSISTANT, BOS, THINK_END, THINK_START, USER, Tokenizer

DEMO = Path(__file__).parents[3] / "configs" / "models" / "deeprequest-demo"
TOKENIZER = Tokenizer(DEMO)
CHAT = ChatTemplate(TOKENIZER).render([Message("user", "How many r's?")])
EMOJI = TOKENIZER.encode_content("🙂")
"""Four ids, one per byte."""


def text_ids(text: str) -> list[int]:
    """Ids of generated text, in which a closing think tag is the token."""
    return TOKENIZER.encode(text)


def asked(
    prompt: list[int] = CHAT, params: SamplingParams | None = None, name: str = "r"
) -> EngineRequest:
    """A chat's thoughts are open at the end of its prompt, and its rule says so."""
    params = params or SamplingParams()
    if prompt is CHAT:
        params = msgspec.structs.replace(params, thinking=ThinkingRule(TOKENIZER.think_end_id))
    return EngineRequest(name, prompt, params)


def started(
    prompt: list[int] = CHAT, params: SamplingParams | None = None, name: str = "r"
) -> OutputProcessor:
    processor = OutputProcessor(TOKENIZER)
    processor.add(asked(prompt, params, name))
    return processor


def step(
    processor: OutputProcessor,
    ids: list[int],
    finish: FinishReason | None = None,
    stop_reason: int | None = None,
) -> tuple[RequestOutput | None, list[str]]:
    outputs = [EngineCoreOutput("r", ids, finish, stop_reason)]
    deltas, aborts = processor.process(outputs)
    assert len(deltas) <= 1
    return (deltas[0] if deltas else None), aborts


def shown(
    processor: OutputProcessor, ids: list[int], finish: FinishReason | None = None
) -> RequestOutput:
    """The delta of a step that must give one."""
    delta, _ = step(processor, ids, finish)
    assert delta is not None
    return delta


def whole(deltas: list[RequestOutput]) -> RequestOutput:
    """All deltas of a request as one."""
    last = deltas[-1]
    assert [delta.reasoning_ended for delta in deltas].count(True) <= 1
    assert all(delta.finish_reason is None and delta.usage is None for delta in deltas[:-1])
    return RequestOutput(
        "r",
        "".join(delta.reasoning for delta in deltas),
        "".join(delta.content for delta in deltas),
        any(delta.reasoning_ended for delta in deltas),
        [token_id for delta in deltas for token_id in delta.token_ids],
        last.finish_reason,
        last.stop_reason,
        last.usage,
        last.error,
    )


def run(
    ids: list[int],
    params: SamplingParams,
    cuts: list[int],
    finish: FinishReason,
    prompt: list[int] = CHAT,
) -> RequestOutput:
    """A whole request whose ids come in steps cut at `cuts`."""
    processor = started(prompt, params)
    edges = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    chunks = [ids[start:end] for start, end in itertools.pairwise(edges)] or [[]]
    deltas = []
    for chunk in chunks:
        end = finish if chunk is chunks[-1] else None
        delta, aborts = step(processor, chunk, end)
        if delta is not None:
            deltas.append(delta)
            if delta.finish_reason is not None:
                assert aborts == ([] if end else ["r"])
                break
    assert len(processor) == 0
    return whole(deltas)


def test_answer_of_a_chat_is_split_at_the_closing_token() -> None:
    processor = started()
    assert shown(processor, text_ids("One r.\n")).reasoning == "One r.\n"
    crossing = shown(processor, text_ids(f"Two.\n{THINK_END}\n\nThree"))
    assert crossing.reasoning == "Two.\n"
    assert crossing.content == "\n\nThree"
    assert crossing.reasoning_ended
    last = shown(processor, [*text_ids("."), TOKENIZER.eos_id], FinishReason.STOP)
    assert (last.reasoning, last.content, last.reasoning_ended) == ("", ".", False)
    assert last.finish_reason is FinishReason.STOP
    assert last.stop_reason is None


def test_usage_on_the_last_delta_counts_every_generated_token() -> None:
    thoughts, answer = text_ids("So.\n"), text_ids("\n\nThree.")
    ids = [*thoughts, TOKENIZER.think_end_id, *answer, TOKENIZER.eos_id]
    processor = started()
    first = [EngineCoreOutput("r", ids[:3], num_cached_tokens=16)]
    assert processor.process(first)[0][0].usage is None
    last = shown(processor, ids[3:], FinishReason.STOP)
    assert last.usage == Usage(len(CHAT), len(ids), 16, len(thoughts))
    assert len(thoughts) + 1 + len(answer) + 1 == len(ids)


def test_thinking_that_is_cut_off_is_all_reasoning() -> None:
    ids = text_ids("Let me count")
    whole_text = run(ids, SamplingParams(), [1, 2], FinishReason.LENGTH)
    assert (whole_text.reasoning, whole_text.content) == ("Let me count", "")
    assert not whole_text.reasoning_ended
    assert whole_text.usage == Usage(len(CHAT), len(ids), 0, len(ids))


def test_later_think_tokens_in_the_answer_are_text() -> None:
    ids = text_ids(f"a{THINK_END}b{THINK_START}c{THINK_END}d")
    delta = run(ids, SamplingParams(), [], FinishReason.LENGTH)
    assert (delta.reasoning, delta.content) == ("a", "b<think>c</think>d")
    assert delta.usage is not None
    assert delta.usage.reasoning_tokens == 1


def test_closing_tag_spelt_by_ordinary_tokens_closes_nothing() -> None:
    ids = TOKENIZER.encode_content(f"a{THINK_END}b")
    delta = run(ids, SamplingParams(), [], FinishReason.LENGTH)
    assert (delta.reasoning, delta.content) == (f"a{THINK_END}b", "")
    assert not delta.reasoning_ended


@pytest.mark.parametrize(
    "prompt",
    [f"{BOS}Once upon a time", f"{BOS}{USER}q{ASSISTANT}{THINK_START}\n"],
)
def test_everything_is_content_where_no_rule_says_that_thoughts_are_open(prompt: str) -> None:
    ids = text_ids(f"a{THINK_END}b")
    delta = run(ids, SamplingParams(), [], FinishReason.LENGTH, TOKENIZER.encode(prompt))
    assert (delta.reasoning, delta.content) == ("", f"a{THINK_END}b")
    assert not delta.reasoning_ended
    assert delta.usage is not None
    assert delta.usage.reasoning_tokens == 0


def test_special_ids_are_never_text() -> None:
    hidden = sorted(TOKENIZER.special_ids)
    ids = [*hidden, *text_ids("a"), *hidden, TOKENIZER.think_end_id, *hidden, *text_ids("b")]
    delta = run(ids, SamplingParams(ignore_eos=True), [3, 7], FinishReason.LENGTH)
    assert (delta.reasoning, delta.content) == ("a", "b")
    assert delta.token_ids == ids


def test_step_that_shows_nothing_gives_no_delta_and_its_ids_ride_on_the_next() -> None:
    processor = started()
    assert [step(processor, [byte])[0] for byte in EMOJI[:3]] == [None, None, None]
    delta = shown(processor, EMOJI[3:])
    assert (delta.reasoning, delta.token_ids) == ("🙂", EMOJI)


def test_half_a_character_does_not_leak_across_the_closing_token() -> None:
    ids = [*EMOJI[:2], TOKENIZER.think_end_id, *EMOJI[2:], *EMOJI]
    delta = run(ids, SamplingParams(), [1, 2, 3, 4], FinishReason.LENGTH)
    assert (delta.reasoning, delta.content) == ("\ufffd", "\ufffd\ufffd🙂")


def test_end_inside_a_character_shows_one_replacement() -> None:
    delta = run(EMOJI[:3], SamplingParams(), [1, 2], FinishReason.LENGTH)
    assert delta.reasoning == "\ufffd"


def test_stop_string_ends_the_request_at_once_and_names_itself() -> None:
    processor = started(params=SamplingParams(stop=("END",)))
    ids = text_ids(f"t{THINK_END}the E")
    assert shown(processor, ids).content == "the "
    assert step(processor, text_ids("N")) == (None, [])
    delta, aborts = step(processor, [*text_ids("D"), *text_ids(" of it")])
    assert delta is not None
    assert aborts == ["r"]
    assert (delta.content, delta.finish_reason, delta.stop_reason) == (
        "",
        FinishReason.STOP,
        "END",
    )
    assert delta.usage == Usage(len(CHAT), len(ids) + 2, 0, 1)
    assert len(processor) == 0
    assert step(processor, text_ids("more"), FinishReason.ABORT) == (None, [])


def test_stop_string_in_the_thinking_does_not_stop() -> None:
    ids = text_ids(f"the END is near{THINK_END}so END it")
    delta = run(ids, SamplingParams(stop=("END",)), [2, 5], FinishReason.LENGTH)
    assert (delta.reasoning, delta.content) == ("the END is near", "so ")
    assert delta.stop_reason == "END"


def test_stop_string_begun_in_the_thinking_is_not_completed_by_the_answer() -> None:
    ids = text_ids(f"the EN{THINK_END}D")
    delta = run(ids, SamplingParams(stop=("END",)), [], FinishReason.LENGTH)
    assert (delta.reasoning, delta.content) == ("the EN", "D")
    assert delta.finish_reason is FinishReason.LENGTH


def test_withheld_text_is_flushed_at_the_end() -> None:
    ids = [*text_ids(f"t{THINK_END}the EN"), TOKENIZER.eos_id]
    delta = run(ids, SamplingParams(stop=("END",)), [1, 4, 6], FinishReason.STOP)
    assert (delta.content, delta.stop_reason) == ("the EN", None)


def test_stop_string_completed_by_the_last_allowed_token_is_a_stop() -> None:
    processor = started(params=SamplingParams(stop=("END",)))
    delta, aborts = step(processor, text_ids(f"t{THINK_END}the END"), FinishReason.LENGTH)
    assert delta is not None
    assert (delta.content, delta.finish_reason, delta.stop_reason) == (
        "the ",
        FinishReason.STOP,
        "END",
    )
    assert aborts == []


def test_stop_string_among_the_first_min_tokens_is_text() -> None:
    ids = text_ids(f"{THINK_END}END and END")
    params = SamplingParams(stop=("END",), min_tokens=5)
    delta = run(ids, params, [3], FinishReason.LENGTH)
    assert (delta.content, delta.stop_reason) == ("END and ", "END")


def test_text_of_the_stop_token_is_hidden_and_the_token_counted() -> None:
    processor = started()
    stop_id = text_ids("!")[0]
    ids = text_ids(f"t{THINK_END}yes! no")
    end = ids.index(stop_id) + 1
    delta, aborts = step(processor, ids, FinishReason.STOP, stop_id)
    assert delta is not None
    assert (delta.content, delta.stop_reason, delta.token_ids) == ("yes", stop_id, ids[:end])
    assert delta.usage is not None
    assert delta.usage.completion_tokens == end
    assert aborts == []


def test_stop_token_seen_before_min_tokens_is_text() -> None:
    stop_id = text_ids("!")[0]
    ids = text_ids(f"{THINK_END}a!b!")
    processor = started(params=SamplingParams(min_tokens=4, stop_token_ids=(stop_id,)))
    delta, _ = step(processor, ids, FinishReason.STOP, stop_id)
    assert delta is not None
    assert delta.content == "a!b"


def test_tokens_drawn_behind_the_end_of_sequence_are_dropped() -> None:
    ids = [*text_ids(f"t{THINK_END}yes"), TOKENIZER.eos_id, *text_ids("junk")]
    delta = run(ids, SamplingParams(), [], FinishReason.STOP)
    assert delta.content == "yes"
    assert delta.token_ids == ids[: ids.index(TOKENIZER.eos_id) + 1]


def test_closing_think_token_as_stop_token_still_ends_the_reasoning() -> None:
    processor = started()
    delta, _ = step(processor, text_ids(f"t{THINK_END}"), FinishReason.STOP, TOKENIZER.think_end_id)
    assert delta is not None
    assert (delta.reasoning, delta.content, delta.reasoning_ended) == ("t", "", True)


def test_errors_and_aborts_are_passed_on_with_what_was_withheld() -> None:
    for reason, code in ((FinishReason.ERROR, "engine_numeric_error"), (FinishReason.ABORT, None)):
        processor = started(params=SamplingParams(stop=("END",)))
        step(processor, text_ids(f"t{THINK_END}EN"))
        deltas, aborts = processor.process([EngineCoreOutput("r", [], reason, error=code)])
        assert aborts == []
        assert (deltas[0].finish_reason, deltas[0].error) == (reason, code)
        assert deltas[0].content == "EN"
        assert deltas[0].usage is not None
        assert len(processor) == 0


def test_requests_of_one_step_do_not_mix() -> None:
    processor = OutputProcessor(TOKENIZER)
    names = ["a", "b", "c"]
    for name in names:
        processor.add(asked(name=name))
    outputs = [EngineCoreOutput(name, text_ids(name)) for name in names]
    outputs.append(EngineCoreOutput("stranger", text_ids("x")))
    deltas, _ = processor.process(outputs)
    assert [(delta.request_id, delta.reasoning) for delta in deltas] == [(n, n) for n in names]


def test_logprobs_ride_with_their_tokens_and_end_with_them() -> None:
    processor = started()
    first, then = TokenLogprobs(-0.5), [TokenLogprobs(-float(place)) for place in range(5)]
    assert not processor.process([EngineCoreOutput("r", EMOJI[:1], logprobs=[first])])[0]
    ids = [*EMOJI[1:], TOKENIZER.eos_id, *text_ids("x")]
    last = EngineCoreOutput("r", ids, FinishReason.STOP, logprobs=then)
    (delta,), _ = processor.process([last])
    assert delta.token_ids == [*EMOJI, TOKENIZER.eos_id]
    assert delta.logprobs == [first, *then[:4]]


def test_logprobs_of_a_prompt_are_passed_on_before_there_is_text() -> None:
    processor = started()
    told = [TokenLogprobs(-0.5), TokenLogprobs(-1.0)]
    (delta,), _ = processor.process([EngineCoreOutput("r", [], prompt_logprobs=told[:1])])
    assert (delta.prompt_logprobs, delta.token_ids) == (told[:1], [])
    # half a character shows nothing, but must not hold up the prompt
    half = EngineCoreOutput("r", EMOJI[:1], prompt_logprobs=told[1:])
    (delta,), _ = processor.process([half])
    assert (delta.prompt_logprobs, delta.reasoning) == (told[1:], "")
    assert shown(processor, EMOJI[1:]).prompt_logprobs is None


def test_a_prediction_is_counted_against_the_output() -> None:
    processor = OutputProcessor(TOKENIZER)
    prediction = text_ids("abcdefgh")
    request = EngineRequest("r", CHAT, SamplingParams(), prediction_token_ids=prediction)
    processor.add(request)
    repeated = prediction[:-1]
    processor.process([EngineCoreOutput("r", repeated[:1]), EngineCoreOutput("r", repeated[1:])])
    usage = shown(processor, text_ids("!"), FinishReason.LENGTH).usage
    assert usage is not None
    assert usage.accepted_prediction_tokens == len(repeated)
    assert usage.rejected_prediction_tokens == 1


def test_discarded_request_reports_what_it_used_and_is_forgotten() -> None:
    processor = started()
    step(processor, text_ids("abc"))
    assert processor.discard("r") == Usage(len(CHAT), 3, 0, 3)
    assert processor.discard("r") is None
    assert step(processor, text_ids("x")) == (None, [])


def test_request_id_in_use_and_empty_stop_string_are_refused() -> None:
    processor = started()
    with pytest.raises(ValueError, match="already in use"):
        processor.add(EngineRequest("r", CHAT, SamplingParams()))
    with pytest.raises(ValueError, match="empty"):
        processor.add(EngineRequest("s", CHAT, SamplingParams(stop=("",))))
    assert len(processor) == 1


generated = st.lists(
    st.one_of(
        st.integers(0, TOKENIZER.size - 1),
        st.sampled_from([TOKENIZER.think_end_id, *EMOJI, *text_ids("ab END")]),
    ),
    min_size=1,
    max_size=40,
)
stop_strings = st.lists(st.sampled_from(["END", "b E", "a", "🙂", "\ufffd", "ab"]), max_size=3)


@given(
    ids=generated,
    stop=stop_strings.map(tuple),
    min_tokens=st.integers(0, 6),
    finish=st.sampled_from([FinishReason.LENGTH, FinishReason.ABORT]),
    cuts=st.lists(st.integers(0, 100), max_size=12),
)
@settings(deadline=None, max_examples=300)
def test_any_steps_of_the_same_ids_give_the_same_text(
    ids: list[int],
    stop: tuple[str, ...],
    min_tokens: int,
    finish: FinishReason,
    cuts: list[int],
) -> None:
    params = SamplingParams(stop=stop, min_tokens=min_tokens)
    at_once = run(ids, params, [], finish)
    assert run(ids, params, cuts, finish) == at_once
    assert run(ids, params, list(range(len(ids))), finish) == at_once


@given(ids=generated)
@settings(deadline=None)
def test_reasoning_and_answer_are_the_one_shot_texts_of_their_ids(ids: list[int]) -> None:
    end = ids.index(TOKENIZER.think_end_id) if TOKENIZER.think_end_id in ids else len(ids)
    parts = [
        TOKENIZER.decode(token_id for token_id in part if token_id not in TOKENIZER.special_ids)
        for part in (ids[:end], ids[end + 1 :])
    ]
    delta = run(ids, SamplingParams(), [], FinishReason.LENGTH)
    assert [delta.reasoning, delta.content] == parts
    assert delta.usage is not None
    assert delta.usage.reasoning_tokens == end
