from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engine.output_processor import OutputProcessor
from cluster.request import (
    EngineCoreOutput,
    EngineRequest,
    FinishReason,
    ReasoningStop,
    RequestOutput,
    SamplingParams,
    ThinkingRule,
)
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer

DEMO = Path(__file__).parents[3] / "configs" / "models" / "deeprequest-demo"
TOKENIZER = Tokenizer(DEMO)
CHAT = ChatTemplate(TOKENIZER).render([Message("user", "How many r's?")])
END = TOKENIZER.think_end_id
CLOSING = (*TOKENIZER.encode_content("\nTime is up.\n"), END, *TOKENIZER.encode("\n\n"))


def last_of(ids: list[int], rule: ThinkingRule | None, prompt: list[int] = CHAT) -> RequestOutput:
    processor = OutputProcessor(TOKENIZER)
    processor.add(EngineRequest("r", prompt, SamplingParams(thinking=rule)))
    (delta,), _ = processor.process([EngineCoreOutput("r", ids, FinishReason.LENGTH)])
    return delta


def test_thoughts_closed_by_force_are_told_and_counted() -> None:
    thoughts = TOKENIZER.encode_content("one r, two r's")
    answer = TOKENIZER.encode_content("Two.")
    rule = ThinkingRule(END, len(thoughts), CLOSING)
    delta = last_of([*thoughts, *CLOSING, *answer], rule)
    assert delta.reasoning == "one r, two r's\nTime is up.\n"
    assert delta.content == "\n\nTwo."
    assert delta.reasoning_stop is ReasoningStop.BUDGET
    assert delta.usage is not None
    assert delta.usage.reasoning_tokens == len(thoughts) + CLOSING.index(END)


def test_thoughts_that_the_model_closed_are_told_as_such() -> None:
    thoughts = TOKENIZER.encode_content("one")
    delta = last_of([*thoughts, END, *thoughts], ThinkingRule(END, 50, CLOSING, True))
    assert delta.reasoning_stop is None


def test_a_rule_that_closes_nothing_only_counts() -> None:
    delta = last_of([*range(300, 310), END, 5, END], ThinkingRule(END))
    assert delta.usage is not None
    assert (delta.usage.reasoning_tokens, delta.reasoning_stop) == (10, None)


@given(
    ids=st.lists(st.integers(0, 300) | st.just(END), min_size=1, max_size=60),
    budget=st.none() | st.integers(0, 60),
    thinks=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_thoughts_and_closing_token_and_answer_are_all_there_is(
    ids: list[int], budget: int | None, thinks: bool
) -> None:
    rule = ThinkingRule(END, budget, CLOSING) if thinks else None
    delta = last_of(ids, rule, CHAT if thinks else CHAT[:-2])
    assert delta.usage is not None
    closed = thinks and END in ids
    answer = len(ids) - ids.index(END) - 1 if closed else 0 if thinks else len(ids)
    assert delta.usage.reasoning_tokens + closed + answer == delta.usage.completion_tokens
