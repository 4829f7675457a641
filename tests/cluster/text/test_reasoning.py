import pytest

from cluster.text.reasoning import PromptState, prompt_state
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
