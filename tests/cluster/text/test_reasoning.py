import pytest

from cluster.text.reasoning import PromptState, ReasoningParser, prompt_state
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import ASSISTANT, BOS, EOS, THINK_END, THINK_START, USER, Tokenizer


def test_rendered_chat_prompt_is_open(tokenizer: Tokenizer) -> None:
    ids = ChatTemplate(tokenizer).render([Message("user", f"{THINK_END} {ASSISTANT}")])
    assert prompt_state(ids, tokenizer) is PromptState.OPEN


@pytest.mark.parametrize(
    ("prompt", "state"),
    [
        (f"{BOS}{USER}q{ASSISTANT}{THINK_START}\n", PromptState.OPEN),
        (f"{BOS}{USER}q{ASSISTANT}{THINK_START}\nhm", PromptState.OPEN),
        (f"{BOS}{USER}q{ASSISTANT}", PromptState.ANSWER),
        (f"{BOS}{USER}q{ASSISTANT}{THINK_START}\n\n{THINK_END}\n\n", PromptState.ANSWER),
        (f"{BOS}{USER}q{ASSISTANT}{THINK_START}x{THINK_END}{THINK_START}", PromptState.OPEN),
        (f"{ASSISTANT}{THINK_START}x{EOS}{USER}q{ASSISTANT}", PromptState.ANSWER),
        (f"{BOS}{USER}{THINK_START}{ASSISTANT}", PromptState.ANSWER),
        (f"{BOS}Once upon a time {THINK_START}", PromptState.UNDECIDED),
        ("", PromptState.UNDECIDED),
    ],
)
def test_state_follows_the_last_think_token_behind_the_final_assistant_marker(
    tokenizer: Tokenizer, prompt: str, state: PromptState
) -> None:
    assert prompt_state(tokenizer.encode(prompt), tokenizer) is state


def test_only_the_first_generated_closing_token_ends_thinking(tokenizer: Tokenizer) -> None:
    parser = ReasoningParser(PromptState.OPEN, tokenizer.think_end_id)
    start, end = tokenizer.think_start_id, tokenizer.think_end_id
    assert [parser.push(token_id) for token_id in (5, start, 6)] == [False, False, False]
    assert parser.thinking
    assert parser.push(end)
    assert not parser.thinking
    assert [parser.push(token_id) for token_id in (start, 7, end)] == [False, False, False]
    assert parser.reasoning_tokens == 3


def test_closing_tag_spelt_by_ordinary_tokens_closes_nothing(tokenizer: Tokenizer) -> None:
    parser = ReasoningParser(PromptState.OPEN, tokenizer.think_end_id)
    spelt = tokenizer.encode_content(f"so {THINK_END} is a tag")
    assert not any(parser.push(token_id) for token_id in spelt)
    assert parser.thinking
    assert parser.reasoning_tokens == len(spelt)


@pytest.mark.parametrize("state", [PromptState.ANSWER, PromptState.UNDECIDED])
def test_nothing_is_reasoning_unless_the_prompt_opened_it(
    tokenizer: Tokenizer, state: PromptState
) -> None:
    parser = ReasoningParser(state, tokenizer.think_end_id)
    ids = (tokenizer.think_start_id, 5, tokenizer.think_end_id)
    assert not any(parser.push(token_id) for token_id in ids)
    assert not parser.thinking
    assert parser.reasoning_tokens == 0
