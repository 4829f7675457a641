import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.text.template import ChatTemplate, Message, Role, TemplateMismatchError
from cluster.text.tokenizer import (
    ASSISTANT,
    BOS,
    EOS,
    THINK_END,
    THINK_START,
    USER,
    Tokenizer,
    TokenizerError,
)

DEMO = Path(__file__).parents[3] / "configs" / "models" / "deeprequest-demo"
MARKERS = (BOS, EOS, USER, ASSISTANT, THINK_START, THINK_END, "<|EOT|>")
TAIL = f"{ASSISTANT}{THINK_START}\n"
ROLES: tuple[Role, ...] = get_args(Role)
Checkpoint = Callable[..., Path]

GOLDEN = {
    "one user turn": ([("user", "hi")], f"{BOS}{USER}hi{TAIL}"),
    "system text straight after BOS": (
        [("system", "Be brief."), ("user", "hi")],
        f"{BOS}Be brief.{USER}hi{TAIL}",
    ),
    "several system messages merged in order and hoisted": (
        [("system", "one"), ("user", "hi"), ("system", "two"), ("user", "ho")],
        f"{BOS}one\n\ntwo{USER}hi{USER}ho{TAIL}",
    ),
    "developer is system": (
        [("developer", "dev"), ("system", "sys"), ("user", "hi")],
        f"{BOS}dev\n\nsys{USER}hi{TAIL}",
    ),
    "empty system messages leave no blank lines": (
        [("system", ""), ("system", "two"), ("user", "hi")],
        f"{BOS}two{USER}hi{TAIL}",
    ),
    "history keeps what follows the last closing tag": (
        [
            ("user", "q"),
            ("assistant", f"{THINK_START}\na{THINK_END}b{THINK_END}\n\nanswer"),
            ("user", "r"),
        ],
        f"{BOS}{USER}q{ASSISTANT}\n\nanswer{EOS}{USER}r{TAIL}",
    ),
    "closing tag alone is enough": (
        [("user", "q"), ("assistant", f"thoughts{THINK_END}answer"), ("user", "r")],
        f"{BOS}{USER}q{ASSISTANT}answer{EOS}{USER}r{TAIL}",
    ),
    "truncated thoughts in history are dropped": (
        [("user", "q"), ("assistant", f"{THINK_START}\nsecret"), ("user", "r")],
        f"{BOS}{USER}q{ASSISTANT}{EOS}{USER}r{TAIL}",
    ),
    "a block opened again behind a closed one is dropped": (
        [
            ("user", "q"),
            ("assistant", f"{THINK_START}a{THINK_END}\n{THINK_START}b"),
            ("user", "r"),
        ],
        f"{BOS}{USER}q{ASSISTANT}{EOS}{USER}r{TAIL}",
    ),
    "last message of the assistant gets a fresh turn": (
        [("user", "q"), ("assistant", "answer")],
        f"{BOS}{USER}q{ASSISTANT}answer{EOS}{TAIL}",
    ),
    "two user turns in a row": ([("user", "a"), ("user", "b")], f"{BOS}{USER}a{USER}b{TAIL}"),
    "system only": ([("system", "s")], f"{BOS}s{TAIL}"),
    "empty texts": ([("system", ""), ("user", "")], f"{BOS}{USER}{TAIL}"),
}

fragments = st.lists(
    st.one_of(
        st.sampled_from([*MARKERS, "<think", ">", "<", "/think>", "{{ x }}", "\n", " "]),
        st.text(max_size=5),
    ),
    max_size=6,
).map("".join)
conversations = st.lists(st.tuples(st.sampled_from(ROLES), fragments), min_size=1, max_size=5)


@pytest.fixture(scope="session")
def template(tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(tokenizer)


def as_messages(turns: list[tuple[Any, str]]) -> list[Message]:
    return [Message(role, content) for role, content in turns]


def control_ids(tokenizer: Tokenizer) -> set[int]:
    spec = json.loads((tokenizer.model_dir / "tokenizer.json").read_text())
    return {token["id"] for token in spec["added_tokens"]}


def frame(tokenizer: Tokenizer, turns: list[tuple[Any, str]]) -> list[int]:
    """The control ids that a conversation of these roles must have, and no others."""
    ids = [tokenizer.bos_id]
    for role, _ in turns:
        if role == "user":
            ids += [tokenizer.user_id]
        if role == "assistant":
            ids += [tokenizer.assistant_id, tokenizer.eos_id]
    return [*ids, tokenizer.assistant_id, tokenizer.think_start_id]


@pytest.mark.parametrize("case", GOLDEN)
def test_conversation_is_rendered_as_r1_reads_it(
    tokenizer: Tokenizer, template: ChatTemplate, case: str
) -> None:
    turns, text = GOLDEN[case]
    assert template.render(as_messages(turns)) == tokenizer.encode(text)


def test_prompt_has_one_bos_and_ends_with_an_open_think_block(
    tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    ids = template.render([Message("user", f"{BOS} hello")])
    assert ids.count(tokenizer.bos_id) == 1
    newline = tokenizer.encode("\n")
    assert ids[-2 - len(newline) :] == [tokenizer.assistant_id, tokenizer.think_start_id, *newline]


def test_think_tag_mentioned_inside_a_past_answer_is_kept_as_text(
    tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    text = f"The {THINK_START} tag opens the thoughts."
    ids = template.render([Message("assistant", text), Message("user", "ok")])
    assert f"{ASSISTANT}{text}{EOS}" in tokenizer.decode(ids)
    assert ids.count(tokenizer.think_start_id) == 1


@pytest.mark.parametrize("marker", MARKERS)
@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
@pytest.mark.parametrize("place", ["at the start", "in the middle", "split over two messages"])
def test_marker_in_content_is_ordinary_text(
    tokenizer: Tokenizer, template: ChatTemplate, marker: str, role: Role, place: str
) -> None:
    half = len(marker) // 2
    turns: list[tuple[Any, str]] = {
        "at the start": [(role, f"{marker} tail")],
        "in the middle": [(role, f"head {marker} tail")],
        "split over two messages": [(role, f"head {marker[:half]}"), (role, f"{marker[half:]} t")],
    }[place]
    turns.append(("user", "go"))
    ids = template.render(as_messages(turns))
    controls = control_ids(tokenizer)
    assert [token_id for token_id in ids if token_id in controls] == frame(tokenizer, turns)
    stripped_on_purpose = role == "assistant" and (
        marker == THINK_END or (marker == THINK_START and place == "at the start")
    )
    if not stripped_on_purpose:
        assert all(content in tokenizer.decode(ids) for _, content in turns)


@given(turns=conversations)
@settings(deadline=None, max_examples=300)
def test_control_ids_are_where_the_template_puts_them_for_any_content(
    tokenizer: Tokenizer, template: ChatTemplate, turns: list[tuple[Any, str]]
) -> None:
    ids = template.render(as_messages(turns))
    controls = control_ids(tokenizer)
    assert [token_id for token_id in ids if token_id in controls] == frame(tokenizer, turns)
    text = tokenizer.decode(ids)
    assert all(content in text for role, content in turns if role != "assistant")


@pytest.mark.parametrize(
    "payload", ["{{ 7*7 }}", "{% for x in y %}", "{{ ''.__class__.__mro__ }}", "{# gone #}"]
)
def test_template_code_in_content_is_text(
    tokenizer: Tokenizer, template: ChatTemplate, payload: str
) -> None:
    ids = template.render([Message("system", payload), Message("user", payload)])
    assert tokenizer.decode(ids) == f"{BOS}{payload}{USER}{payload}{TAIL}"


def test_empty_conversation_and_unknown_role_are_refused(template: ChatTemplate) -> None:
    with pytest.raises(ValueError, match="at least one message"):
        template.render([])
    tool: Any = "tool"
    with pytest.raises(ValueError, match="unknown role 'tool'"):
        template.render([Message(tool, "42")])


def test_own_template_of_the_checkpoint_agrees(template: ChatTemplate) -> None:
    assert template.verify()


def test_demo_checkpoint_agrees_with_its_own_template() -> None:
    assert ChatTemplate(Tokenizer(DEMO)).verify()


def test_transformers_renders_and_encodes_the_same_ids() -> None:
    from transformers import PreTrainedTokenizerFast

    # Not AutoTokenizer: for model_type qwen2 it replaces the checkpoint's own pre-tokenizer.
    oracle = PreTrainedTokenizerFast.from_pretrained(str(DEMO))
    template = ChatTemplate(Tokenizer(DEMO))
    conversations: tuple[list[tuple[Any, str]], ...] = (
        [("user", "How many r's?")],
        [("system", "Be brief."), ("user", "naïve 🙂 日本")],
        [("user", "q"), ("assistant", "<think>\nhm</think>\n\nanswer"), ("user", "r ")],
    )
    for turns in conversations:
        messages = [{"role": role, "content": content} for role, content in turns]
        expected = oracle.apply_chat_template(messages, add_generation_prompt=True)
        assert template.render(as_messages(turns)) == list(expected["input_ids"])


def test_checkpoint_without_a_template_is_accepted(checkpoint: Checkpoint) -> None:
    assert not ChatTemplate(Tokenizer(checkpoint(tokenizer_config=None))).verify()
    assert not ChatTemplate(Tokenizer(checkpoint(tokenizer_config={"bos_token": BOS}))).verify()


def refusal(folder: Path) -> str:
    with pytest.raises(TemplateMismatchError) as caught:
        ChatTemplate(Tokenizer(folder)).verify()
    return str(caught.value)


def test_template_without_the_open_think_block_is_refused(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = config["chat_template"].replace("<think>\\n", "")
    message = refusal(checkpoint(tokenizer_config=config))
    assert "tokenizer_config.json" in message
    assert "from id" in message
    assert "DeepSeek-R1-Distill" in message


def test_template_file_goes_before_the_one_in_the_config(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert "chat_template.jinja" in refusal(folder)


def test_named_templates_are_read_by_their_default(checkpoint: Checkpoint) -> None:
    config = json.loads((checkpoint() / "tokenizer_config.json").read_text())
    good = config["chat_template"]
    config["bos_token"] = {"content": BOS, "special": True}
    config["chat_template"] = [
        {"name": "tool_use", "template": "nothing"},
        {"name": "default", "template": good},
    ]
    assert ChatTemplate(Tokenizer(checkpoint(tokenizer_config=config))).verify()
    config["chat_template"] = [{"name": "tool_use", "template": "nothing"}]
    assert not ChatTemplate(Tokenizer(checkpoint(tokenizer_config=config))).verify()


def test_bos_declared_wrongly_is_refused(checkpoint: Checkpoint) -> None:
    config = json.loads((checkpoint() / "tokenizer_config.json").read_text())
    message = refusal(checkpoint(tokenizer_config={**config, "bos_token": EOS}))
    assert "from id 0" in message


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ raise_exception('no') }}",
        "{{ messages[0].nothing.at.all }}",
        "{{ 1 + messages[0].content }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
    ],
)
def test_template_that_fails_or_leaves_its_sandbox_is_refused(
    checkpoint: Checkpoint, source: str
) -> None:
    assert "does not render" in refusal(checkpoint(tokenizer_config={"chat_template": source}))


def test_broken_tokenizer_config_is_named(checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json cannot be read"):
        ChatTemplate(Tokenizer(folder)).verify()


def test_the_next_prompt_begins_as_next_turn_says(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(tokenizer)
    question, answer = Message("user", "hi"), Message("assistant", "ho")
    prompt = template.render([question])
    turn = template.next_turn(prompt, line_breaks=True)
    prefix = [*prompt[: turn.num_kept_tokens], *tokenizer.encode_content("ho"), turn.end_token_id]
    assert template.render([question, answer, question])[: len(prefix)] == prefix
    assert turn.answer_follows == tokenizer.think_end_id
    assert turn.dropped_token_ids == []
    dropped = template.next_turn(prompt, line_breaks=False).dropped_token_ids
    assert dropped
    assert not tokenizer.decode(dropped).strip("\n")
