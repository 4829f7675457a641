"""The next turn of a conversation finds its history, though the thoughts are gone from it."""

import random
from pathlib import Path

import pytest

from cluster.batch import ModelRunnerOutput, SchedulerOutput
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.request import Request
from cluster.engine.scheduler import Scheduler, SchedulerConfig
from cluster.engine.warm_up import MAX_WAITING, next_turn_prefix
from cluster.request import EngineRequest, NextTurn, SamplingParams
from cluster.text.template import ChatTemplate, Message
from cluster.text.tokenizer import Tokenizer

DEMO = Path(__file__).parents[3] / "configs" / "models" / "deeprequest-demo"
THINK_END, END, BREAK = 50, 51, 52
TURN = NextTurn(3, THINK_END, END, [BREAK])
BLOCK = 16


class Chat:
    """A scheduler whose workers say what they were told to say."""

    def __init__(self, num_blocks: int = 600, budget: int = 2048) -> None:
        self.tokenizer = Tokenizer(DEMO)
        self.template = ChatTemplate(self.tokenizer)
        self.kv = KVCacheManager(num_blocks, BLOCK, True)
        eos = frozenset({self.tokenizer.eos_id})
        self.core = Scheduler(SchedulerConfig(4, budget, 8000), self.kv, eos)
        self.frames: list[SchedulerOutput] = []

    def step(self, token_id: int = 1) -> int:
        """One step; the prompt tokens of the answered request that came from the cache."""
        frame = self.core.schedule()
        self.frames.append(frame)
        rows = [share.row for share in frame.scheduled if share.samples]
        computed = ModelRunnerOutput(frame.step, rows, [[token_id]] * len(rows))
        outputs = self.core.update(frame, computed)
        self.core.observe(frame, 0.01)
        self.core.check_integrity()
        return sum(output.num_cached_tokens for output in outputs)

    def say(self, prompt: list[int], output: list[int], salt: bytes = b"a tenant") -> int:
        """A request that gets this output; its prompt tokens that came from the cache."""
        params = SamplingParams(max_tokens=len(output))
        turn = self.template.next_turn(prompt, line_breaks=False)
        self.core.add(EngineRequest(f"r{len(self.frames)}", prompt, params, salt, next_turn=turn))
        cached, *_ = [self.step(token_id) for token_id in output]
        return cached

    def rest(self) -> None:
        while self.core.has_work:
            self.step()


def words(count: int, seed: int) -> str:
    choose = random.Random(seed)
    return " ".join(choose.choice(["red", "green", "blue", "seven", "tea"]) for _ in range(count))


@pytest.mark.parametrize(("asked", "answered"), [(700, 20), (20, 700), (350, 350)])
def test_the_second_turn_of_a_long_chat_comes_from_the_cache(asked: int, answered: int) -> None:
    chat = Chat()
    history = [Message("user", words(asked, 1))]
    thoughts = chat.tokenizer.encode_content(words(60, 2))
    answer = words(answered, 3)
    output = [
        *thoughts,
        chat.tokenizer.think_end_id,
        *chat.tokenizer.encode_content("\n\n"),
        *chat.tokenizer.encode_content(answer),
        chat.tokenizer.eos_id,
    ]
    assert chat.say(chat.template.render(history), output) == 0
    chat.rest()
    turns = [*history, Message("assistant", answer), Message("user", "and now?")]
    prompt = chat.template.render(turns)
    assert len(prompt) >= 1200
    assert chat.say(prompt, [1], salt=b"another tenant") == 0
    assert chat.say(prompt, [1]) >= 0.95 * len(prompt)


def finished(output: list[int], turn: NextTurn = TURN) -> Request:
    request = Request.of(
        EngineRequest("a", [1, 2, 3, 4], SamplingParams(max_tokens=99), next_turn=turn)
    )
    request.token_ids += output
    return request


@pytest.mark.parametrize(
    ("output", "prefix"),
    [
        ([8, THINK_END, 9, END], [1, 2, 3, 9, END]),
        ([8, THINK_END, BREAK, BREAK, 9, BREAK, END], [1, 2, 3, 9, BREAK, END]),
        ([8, THINK_END, 9], [1, 2, 3, 9, END]),
        ([THINK_END, 8, THINK_END, 9, END], [1, 2, 3, 9, END]),
        ([8, 9], []),
        ([8, THINK_END, BREAK, END], []),
    ],
)
def test_the_next_turn_begins_with_what_is_left_without_thoughts(
    output: list[int], prefix: list[int]
) -> None:
    assert next_turn_prefix(finished(output), TURN) == prefix


def begin(chat: Chat, num_answer: int = 100) -> None:
    """A turn has ended and its warm-up has begun."""
    think_end = chat.tokenizer.think_end_id
    output = [3] * 40 + [think_end] + [5] * num_answer + [chat.tokenizer.eos_id]
    chat.say(chat.template.render([Message("user", "hello")]), output)
    chat.step()


def test_a_request_that_comes_meanwhile_is_not_kept_waiting() -> None:
    chat = Chat()
    begin(chat)
    (warm,) = chat.frames[-1].scheduled
    assert not warm.samples
    chat.core.add(EngineRequest("new", [1, 2], SamplingParams(max_tokens=1)))
    chat.step()
    frame = chat.frames[-1]
    assert frame.released == [warm.row]
    assert [share.num_tokens for share in frame.scheduled] == [2]
    chat.rest()
    assert chat.kv.pool.num_unused == chat.kv.pool.num_usable


def test_a_warm_up_is_nobodys_load_and_nobodys_tokens() -> None:
    chat = Chat()
    begin(chat)
    before = chat.core.stats()
    assert (before.running, before.waiting, before.running_tokens) == (0, 0, 0)
    chat.rest()
    after = chat.core.stats()
    assert after.prompt_tokens == before.prompt_tokens
    assert after.generation_tokens == before.generation_tokens


def test_a_warm_up_never_pushes_a_cached_prefix_out() -> None:
    chat = Chat(num_blocks=21)
    prompt = [*range(1, 15 * BLOCK)]
    chat.core.add(EngineRequest("old", prompt, SamplingParams(max_tokens=1), b"another"))
    chat.step()
    begin(chat)  # 9 blocks of which it had to take some; its own are then empty
    chat.rest()
    cached = chat.kv.pool.num_unused_cached
    empty = chat.kv.pool.num_unused - cached
    chat.core.add(EngineRequest("again", prompt, SamplingParams(max_tokens=1), b"another"))
    assert chat.step() > 0
    assert empty >= 0


def test_thoughts_leave_no_prefix_behind() -> None:
    chat = Chat()
    output = [3] * 100
    prompt = chat.template.render([Message("user", words(100, 4))])
    chat.say(prompt, output)
    assert chat.kv.pool.num_unused_cached <= -(-len(prompt) // BLOCK)


def test_steps_of_a_warm_up_take_about_the_time_they_may() -> None:
    chat = Chat()
    begin(chat, 700)
    chunks = []
    while chat.core.has_work:
        frame = chat.core.schedule()
        chat.core.update(frame, ModelRunnerOutput(frame.step, [], []))
        chat.core.observe(frame, frame.total_tokens * 0.0005)
        chunks.append(frame.total_tokens)
    assert max(chunks) in range(30, 50)


def test_only_so_many_warm_ups_wait() -> None:
    chat = Chat(num_blocks=6000)
    for number in range(MAX_WAITING + 20):
        request = finished([8, THINK_END, *range(number, number + 40), END])
        chat.core._warm_ups.offer(request, TURN)
    assert len(chat.core._warm_ups._waiting) == MAX_WAITING
    chat.rest()


def test_a_warm_up_whose_numbers_go_wrong_leaves_nothing_to_hit() -> None:
    chat = Chat()
    begin(chat)
    cached = chat.kv.pool.num_unused_cached
    frame = chat.core.schedule()
    row = frame.scheduled[0].row
    assert chat.core.update(frame, ModelRunnerOutput(frame.step, [], [], [row])) == []
    chat.core.check_integrity()
    assert chat.kv.pool.num_unused_cached <= cached
    chat.rest()
