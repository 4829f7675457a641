"""How a prompt ends: what the model is made to say next."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.text.reasoning import PromptState, prompt_state
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import ASSISTANT, BOS, EOS, THINK_END, THINK_START, USER, Tokenizer

QUESTION = Message("user", "How many r's?")
ASKED = f"{BOS}{USER}How many r's?{ASSISTANT}"


@pytest.fixture
def template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer)


def test_a_closed_ending_leaves_an_empty_think_block_behind(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    ids = template.render([QUESTION], "closed")
    assert ids == tokenizer.encode(f"{ASKED}{THINK_START}\n\n{THINK_END}\n\n")
    assert prompt_state(ids, tokenizer) is PromptState.ANSWER


def test_a_bare_ending_adds_nothing(template: ChatTemplate, tokenizer: Tokenizer) -> None:
    past = Message("assistant", "Three.")
    assert template.render([QUESTION], "bare") == tokenizer.encode(f"{BOS}{USER}How many r's?")
    assert template.render([QUESTION, past], "bare") == tokenizer.encode(f"{ASKED}Three.{EOS}")


@pytest.mark.parametrize(
    ("begun", "prompt", "state"),
    [
        (Message("assistant", "There are"), "There are", PromptState.ANSWER),
        (Message("assistant", ""), "", PromptState.ANSWER),
        (Message("assistant", "<think>\nLet"), "<think>\nLet", PromptState.OPEN),
        (Message("assistant", " \n<think>Let"), "<think>Let", PromptState.OPEN),
        (Message("assistant", "", "Let"), "<think>\nLet", PromptState.OPEN),
        (
            Message("assistant", "<think>\nOne.\n</think>\n\nThere"),
            "<think>\nOne.\n</think>\n\nThere",
            PromptState.ANSWER,
        ),
        (
            Message("assistant", "There", "One."),
            "<think>\nOne.\n</think>\n\nThere",
            PromptState.ANSWER,
        ),
        (
            Message("assistant", "One.\n</think>\n\nThere"),
            "<think>One.\n</think>\n\nThere",
            PromptState.ANSWER,
        ),
        (
            Message("assistant", "<think>\n\n</think>\n\n"),
            "<think>\n\n</think>\n\n",
            PromptState.ANSWER,
        ),
    ],
)
def test_a_continued_turn_stands_as_it_was_said_and_is_not_ended(
    template: ChatTemplate, tokenizer: Tokenizer, begun: Message, prompt: str, state: PromptState
) -> None:
    ids = template.render([QUESTION, begun], "continued")
    assert ids == tokenizer.encode(ASKED + prompt)
    assert tokenizer.eos_id not in ids
    assert prompt_state(ids, tokenizer) is state


def test_an_open_think_block_alone_is_the_usual_ending(template: ChatTemplate) -> None:
    begun = Message("assistant", f"{THINK_START}\n")
    assert template.render([QUESTION, begun], "continued") == template.render([QUESTION])


def test_thoughts_of_turns_before_the_continued_one_are_dropped(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    past = Message("assistant", "<think>\nOne.\n</think>\n\nThree.", "One.")
    ids = template.render(
        [Message("system", "Be brief."), QUESTION, past, QUESTION, Message("assistant", "Th")],
        "continued",
    )
    assert ids == tokenizer.encode(
        f"{BOS}Be brief.{USER}How many r's?{ASSISTANT}\n\nThree.{EOS}{USER}How many r's?"
        f"{ASSISTANT}Th"
    )


@given(content=st.lists(st.sampled_from([*"ab \n", THINK_START, THINK_END, EOS, ASSISTANT, BOS])))
@settings(max_examples=200, deadline=None)
def test_a_continued_turn_opens_and_closes_at_most_one_block(
    tokenizer: Tokenizer, content: list[str]
) -> None:
    ids = ChatTemplate(tokenizer).render(
        [QUESTION, Message("assistant", "".join(content))], "continued"
    )
    turn = ids[ids.index(tokenizer.assistant_id) + 1 :]
    markers = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.user_id, tokenizer.assistant_id}
    assert not markers & set(turn)
    assert [i for i in turn if i in (tokenizer.think_start_id, tokenizer.think_end_id)] in (
        [],
        [tokenizer.think_start_id],
        [tokenizer.think_start_id, tokenizer.think_end_id],
    )
    assert turn[:1] == [tokenizer.think_start_id] or tokenizer.think_start_id not in turn


def test_only_an_assistant_s_turn_can_be_continued(template: ChatTemplate) -> None:
    with pytest.raises(ValueError, match="only an assistant's turn"):
        template.render([QUESTION], "continued")


def test_all_of_an_output_behind_a_closed_ending_is_answer(
    template: ChatTemplate, tokenizer: Tokenizer
) -> None:
    prompt = template.render([QUESTION], "closed")
    turn = template.next_turn(prompt, "closed", line_breaks=False)
    assert prompt[: turn.num_kept_tokens] == tokenizer.encode(ASKED)
    assert turn.answer_follows is None
