"""ChatTemplate: a conversation as prompt ids, the way DeepSeek R1 was trained to read it.

Owns the order of markers and the rules on system messages and past thoughts. Refuses to know HTTP
and tools. Nothing is rendered to a string on the way: markers are ids, what people wrote is encoded
without added tokens, so a control token in the prompt was put there by this file.

    BOS system <User> question <Assistant> past answer EOS <User> question <Assistant><think>\\n
        ------        --------             -----------           --------
        encoded as content; a past answer without its thoughts

How a prompt ends decides what the model says next:

    open        ... <User> question <Assistant><think>\\n                    thoughts
    closed      ... <User> question <Assistant><think>\\n\\n</think>\\n\\n    an answer without them
    continued   ... <User> question <Assistant> what it said so far        more of it
    bare        ... <User> question                                        whatever may follow

The checkpoint's own chat_template is never used to serve; `verify` holds it against this file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.request import NextTurn
from cluster.text.tokenizer import BOS, EOS, THINK_END, THINK_START, Tokenizer

Role = Literal["system", "developer", "user", "assistant"]
Ending = Literal["open", "closed", "continued", "bare"]


class TemplateMismatchError(ValueError):
    """The checkpoint's own chat_template gives other ids; the message names the file and where."""


class Message(NamedTuple):
    """One turn of a conversation. `developer` is another word for `system`."""

    role: Role
    content: str
    thoughts: str = ""
    """What an assistant thought before the content, if that is told apart from it; read only where
    its turn is continued."""
    calls: str = ""
    """What follows the content of an assistant's turn and is never taken for thoughts."""


class ChatTemplate:
    """Renders conversations with one checkpoint's tokenizer. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        blank_line = tokenizer.encode("\n\n")
        opened = [tokenizer.assistant_id, tokenizer.think_start_id]
        self._generation_prompts: dict[Ending, list[int]] = {
            "open": [*opened, *tokenizer.encode("\n")],
            "closed": [*opened, *blank_line, tokenizer.think_end_id, *blank_line],
            "bare": [],
        }

    def render(self, messages: Sequence[Message], ending: Ending = "open") -> list[int]:
        """Prompt ids of a conversation.

        System messages are merged in order, joined by a blank line, and hoisted to the top. Of a
        past assistant turn only what follows the last `</think>` is kept, leading line breaks
        included; a turn that opens a think block and never closes it is all reasoning. Of a turn
        to be continued everything is kept, in the block that it opened, perhaps closed, or none.

        Raises:
            ValueError: no messages, an unknown role, text that is not valid Unicode, or a turn to
                be continued that is not an assistant's.
        """
        if not messages:
            raise ValueError("a conversation needs at least one message")
        if ending == "continued":
            return self._continued(messages)
        tokenizer = self._tokenizer
        system = [turn.content for turn in messages if turn.role in ("system", "developer")]
        turns = [turn for turn in messages if turn.role not in ("system", "developer")]
        contents = ["\n\n".join(text for text in system if text)]
        contents += [_shown_part(turn) for turn in turns]
        system_ids, *turn_ids = tokenizer.encode_contents(contents)
        ids = [tokenizer.bos_id, *system_ids]
        for turn, content_ids in zip(turns, turn_ids, strict=True):
            if turn.role == "user":
                ids += [tokenizer.user_id, *content_ids]
            else:
                ids += [tokenizer.assistant_id, *content_ids, tokenizer.eos_id]
        return ids + self._generation_prompts[ending]

    def _continued(self, messages: Sequence[Message]) -> list[int]:
        *before, last = messages
        if last.role != "assistant":
            raise ValueError("only an assistant's turn can be continued")
        tokenizer = self._tokenizer
        ids = self.render(before, "bare") if before else [tokenizer.bos_id]
        thoughts, answer = _begun_turn(last)
        thought_ids, answer_ids = tokenizer.encode_contents([thoughts or "", answer or ""])
        ids.append(tokenizer.assistant_id)
        if thoughts is not None:
            ids += [tokenizer.think_start_id, *thought_ids]
            if answer is not None:
                ids.append(tokenizer.think_end_id)
        return ids + answer_ids

    def next_turn(
        self, prompt: Sequence[int], ending: Ending = "open", *, line_breaks: bool
    ) -> NextTurn:
        """How the conversation's next prompt will show the answer to `prompt`, rendered with this
        ending, open or closed.

        `line_breaks`: whether whoever asked is shown those with which the answer begins, and will
        send them back; where not, single tokens that are nothing else are left out.
        """
        breaks = (self._tokenizer.encode("\n" * count) for count in range(1, 5))
        return NextTurn(
            num_kept_tokens=len(prompt) - len(self._generation_prompts[ending]) + 1,
            answer_follows=self._tokenizer.think_end_id if ending == "open" else None,
            end_token_id=self._tokenizer.eos_id,
            dropped_token_ids=[] if line_breaks else sorted({i for ids in breaks for i in ids}),
        )

    def verify(self) -> bool:
        """Compares probe conversations with the checkpoint's own chat_template, id by id.

        Only inputs on which both must agree are probed: several system messages, open thoughts and
        control strings are handled differently here on purpose. Returns False if the checkpoint
        brings no chat_template to compare with.

        Raises:
            TemplateMismatchError: the ids differ, or the template does not render.
            TokenizerError: tokenizer_config.json cannot be read.
        """
        own = _own_template(self._tokenizer)
        if own is None:
            return False
        for probe in _PROBES:
            theirs = self._tokenizer.encode(own.render(probe))
            ours = self.render(probe)
            if ours != theirs:
                _refuse(own.path, self._tokenizer, ours, theirs)
        return True


def _shown_part(turn: Message) -> str:
    """What of a past turn the model may see again."""
    if turn.role == "user":
        return turn.content
    if turn.role != "assistant":
        raise ValueError(f"unknown role {turn.role!r}")
    kept = turn.content.rpartition(THINK_END)[2]
    shown = "" if kept.lstrip().startswith(THINK_START) else kept
    return shown + turn.calls


def _begun_turn(turn: Message) -> tuple[str | None, str | None]:
    """(thoughts, answer) of a turn to be continued, as they stand around the think tokens; None
    where there are none. Thoughts without an answer are open."""
    content = turn.content
    if turn.thoughts:
        closed = f"\n{turn.thoughts}\n", f"\n\n{content}"
        return closed if content else (f"\n{turn.thoughts}", None)
    head, tag, answer = content.partition(THINK_END)
    opens = head.lstrip().startswith(THINK_START)
    if not (opens or tag):
        return None, content
    thoughts = head.lstrip().removeprefix(THINK_START) if opens else head
    return thoughts, answer if tag else None


class _OwnTemplate:
    """The chat_template that came with a checkpoint, in a sandbox."""

    def __init__(self, source: str, path: Path, names: dict[str, str]) -> None:
        self.path = path
        self._names = names
        # The whitespace rules are those under which templates are published.
        sandbox = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        sandbox.globals["raise_exception"] = _raise_template_error
        try:
            self._template = sandbox.from_string(source)
        except jinja2.TemplateError as error:
            raise _unusable(path, error) from error

    def render(self, messages: Sequence[Message]) -> str:
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        try:
            return self._template.render(messages=turns, add_generation_prompt=True, **self._names)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise _unusable(self.path, error) from error


def _own_template(tokenizer: Tokenizer) -> _OwnTemplate | None:
    config_path = tokenizer.model_dir / "tokenizer_config.json"
    config = tokenizer.read_config("tokenizer_config.json")
    names = {
        "bos_token": _token_text(config.get("bos_token"), BOS),
        "eos_token": _token_text(config.get("eos_token"), EOS),
    }
    jinja_path = tokenizer.model_dir / "chat_template.jinja"
    if jinja_path.is_file():
        try:
            return _OwnTemplate(jinja_path.read_text(encoding="utf-8"), jinja_path, names)
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable(jinja_path, error) from error
    source = config.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return _OwnTemplate(source, config_path, names) if source else None


def _token_text(declared: Any, marker: str) -> str:
    """A token of tokenizer_config.json, written as its string or as an object that holds it."""
    text = declared.get("content") if isinstance(declared, dict) else declared
    return text if isinstance(text, str) else marker


def _raise_template_error(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _unusable(path: Path, error: Exception) -> TemplateMismatchError:
    return TemplateMismatchError(
        f"the chat_template in {path} does not render ({type(error).__name__}: {error}): restore "
        "the publisher's file"
    )


def _refuse(path: Path, tokenizer: Tokenizer, ours: list[int], theirs: list[int]) -> NoReturn:
    pairs = zip(ours, theirs, strict=False)
    place = next(
        (place for place, (one, other) in enumerate(pairs) if one != other),
        min(len(ours), len(theirs)),
    )
    excerpts = [json.dumps(tokenizer.decode(ids[place : place + 8])) for ids in (ours, theirs)]
    raise TemplateMismatchError(
        f"the chat_template in {path} builds another prompt than DeepSeek R1's: from id {place} on "
        f"it gives {excerpts[1]} where R1 expects {excerpts[0]}. Serve a DeepSeek-R1-Distill "
        "checkpoint with the chat_template of its publisher (February 2025 or later)"
    )


_QUESTION = Message("user", "How many r's are in the word 'strawberry'?")
_PROBES: tuple[tuple[Message, ...], ...] = (
    (_QUESTION,),
    (Message("system", "You are a helpful assistant."), _QUESTION),
    (Message("system", ""), Message("user", "")),
    (Message("user", "  spaces \n\n and\tlines \n"), Message("user", "again ")),
    (Message("user", "naïve café 你好 日本語 👩‍👩‍👧 e\u0301 1234567 <b>x</b> |User|"),),
    (
        Message("system", "Be brief."),
        Message("user", "2+2?"),
        Message("assistant", f"{THINK_START}\nTwo and two.\n{THINK_END}\n\nIt is 4."),
        Message("user", "And 3+3?"),
        Message("assistant", "6"),
        _QUESTION,
    ),
    (_QUESTION, Message("assistant", "Three.")),
)
