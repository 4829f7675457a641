"""Generation against scripted replicas that talk over real delta links."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from cluster.request import EngineRequest, FinishReason, RequestOutput, SamplingParams, Usage
from serve_app.chat_run import ChatRun
from serve_app.deltas import (
    DeltaLinks,
    DeltaServer,
    ReplicaLostError,
    Submission,
    accepted,
)
from serve_app.generation import Generation
from serve_app.metrics import Metrics
from serve_app.openai.chat import ChatCompletion, ChatStream, ResponseHead
from serve_app.openai.errors import ApiError

Script = Callable[[DeltaLinks, Submission], Awaitable[None]]
REQUEST = EngineRequest("r", [1, 2, 3], SamplingParams())
HEAD = ResponseHead("chatcmpl-1", 0, "m", "fp")


class ScriptedModel:
    """Each call runs the next script, as a replica of its own."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = iter(scripts)
        self.cancelled = 0

    async def submit(self, submission: bytes) -> None:
        links = DeltaLinks("replica", lambda _: None)
        decoded = Submission.decode(submission)
        await links.connect(decoded.address)
        try:
            await next(self._scripts)(links, decoded)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            await links.close()


class Receipts:
    """Remembers what was settled."""

    def __init__(self) -> None:
        self.settled: list[tuple[int, int, int, str]] = []

    def settle(
        self, *, prompt_tokens: int, output_tokens: int, cached_tokens: int, outcome: str
    ) -> None:
        self.settled.append((prompt_tokens, output_tokens, cached_tokens, outcome))


def delta(submission: Submission, text: str, *, last: bool = False) -> RequestOutput:
    output = RequestOutput(submission.request.request_id, content=text, token_ids=[7])
    if last:
        output.finish_reason, output.usage = FinishReason.STOP, Usage(3, 2, 1, 0)
    return output


async def answer(links: DeltaLinks, submission: Submission) -> None:
    links.send(submission.address, [delta(submission, "a")])
    await asyncio.sleep(0.01)
    links.send(submission.address, [delta(submission, "b", last=True)])
    await asyncio.sleep(0.05)


async def die_at_once(links: DeltaLinks, submission: Submission) -> None:
    raise ReplicaLostError


async def die_after_a_delta(links: DeltaLinks, submission: Submission) -> None:
    links.send(submission.address, [delta(submission, "a")])
    await asyncio.sleep(0.05)
    raise ReplicaLostError


async def die_after_accepting(links: DeltaLinks, submission: Submission) -> None:
    links.send(submission.address, [accepted(submission.request.request_id)])
    await asyncio.sleep(0.05)
    raise ReplicaLostError


async def break_down(links: DeltaLinks, submission: Submission) -> None:
    raise ZeroDivisionError


async def never_finish(links: DeltaLinks, submission: Submission) -> None:
    links.send(submission.address, [delta(submission, "a")])
    await asyncio.sleep(60)


@contextlib.asynccontextmanager
async def started(model: ScriptedModel) -> AsyncIterator[Generation]:
    server = DeltaServer("127.0.0.1", range(29100, 29200))
    await server.start()
    try:
        yield Generation(REQUEST, model, server)
    finally:
        await server.stop()


async def text_of(generation: Generation) -> str:
    text = ""
    async with contextlib.aclosing(generation.outputs(lambda: 5)) as batches:
        async for batch in batches:
            text += "".join(output.content for output in batch)
    return text


def run_of(generation: Generation, receipts: Receipts, timeout_s: float = 60) -> ChatRun:
    loop_time = asyncio.get_running_loop().time()
    return ChatRun(
        generation,
        receipts,
        Metrics("i"),
        3,
        arrived=loop_time,
        timeout_s=timeout_s,
        keep_alive_s=0.05,
    )


def test_deltas_arrive_in_order_up_to_the_last() -> None:
    async def scenario() -> None:
        async with started(ScriptedModel(answer)) as generation:
            assert await text_of(generation) == "ab"

    asyncio.run(scenario())


def test_a_replica_that_dies_before_its_first_delta_is_replaced_once() -> None:
    async def scenario() -> None:
        async with started(ScriptedModel(die_at_once, answer)) as generation:
            assert await text_of(generation) == "ab"
        async with started(ScriptedModel(die_at_once, die_at_once)) as generation:
            with pytest.raises(ReplicaLostError):
                await text_of(generation)

    asyncio.run(scenario())


@pytest.mark.parametrize("end", [die_after_a_delta, die_after_accepting])
def test_a_request_that_was_accepted_is_never_run_again(end: Script) -> None:
    async def scenario() -> None:
        async with started(ScriptedModel(end, answer)) as generation:
            with pytest.raises(ReplicaLostError):
                await text_of(generation)

    asyncio.run(scenario())


def test_a_submission_that_fails_in_any_way_ends_the_wait() -> None:
    async def scenario() -> None:
        async with started(ScriptedModel(break_down, break_down)) as generation:
            with pytest.raises(ReplicaLostError):
                await asyncio.wait_for(text_of(generation), 5)

    asyncio.run(scenario())


@pytest.mark.parametrize("events_read", [0, 1, 2])
def test_a_stream_is_settled_once_wherever_its_client_leaves(events_read: int) -> None:
    async def scenario() -> None:
        receipts = Receipts()
        async with started(ScriptedModel(never_finish)) as generation:
            run = run_of(generation, receipts)
            events = run.events(ChatStream(HEAD, "think_tags", thinking=False))
            for _ in range(events_read):
                await anext(events)
            await events.aclose()
            run.close()
        assert [outcome for *_, outcome in receipts.settled] == ["abort"]

    asyncio.run(scenario())


def test_a_reader_that_leaves_cancels_the_call() -> None:
    async def scenario() -> None:
        model = ScriptedModel(never_finish)
        async with started(model) as generation:
            async with contextlib.aclosing(generation.outputs(lambda: 5)) as batches:
                await anext(batches)
            await asyncio.sleep(0.05)
            assert model.cancelled == 1

    asyncio.run(scenario())


def test_a_whole_answer_is_settled_with_the_engines_counts() -> None:
    async def scenario() -> None:
        receipts = Receipts()
        async with started(ScriptedModel(answer)) as generation:
            completion = ChatCompletion(HEAD, "think_tags", thinking=False)
            body = await run_of(generation, receipts).answer(completion)
        assert b'"content":"ab"' in body
        assert receipts.settled == [(3, 2, 1, "ok")]

    asyncio.run(scenario())


def test_a_lost_replica_is_one_error_event_without_done() -> None:
    async def scenario() -> None:
        receipts = Receipts()
        async with started(ScriptedModel(die_after_a_delta)) as generation:
            stream = ChatStream(HEAD, "think_tags", thinking=False)
            events = [event async for event in run_of(generation, receipts).events(stream)]
        assert b'"error"' in events[-1]
        assert not any(b"[DONE]" in event for event in events)
        assert receipts.settled == [(3, 1, 0, "error")]

    asyncio.run(scenario())


def test_silence_is_filled_with_comments_until_time_runs_out() -> None:
    async def scenario() -> None:
        receipts = Receipts()
        model = ScriptedModel(never_finish)
        async with started(model) as generation:
            stream = ChatStream(HEAD, "think_tags", thinking=False)
            run = run_of(generation, receipts, timeout_s=0.3)
            events = [event async for event in run.events(stream)]
            await asyncio.sleep(0.05)
        assert any(event.startswith(b":") for event in events)
        assert b'"timeout"' in events[-1]
        assert model.cancelled == 1

    asyncio.run(scenario())


def test_an_engine_failure_is_told_by_its_code() -> None:
    async def fail(links: DeltaLinks, submission: Submission) -> None:
        output = delta(submission, "")
        output.finish_reason, output.error = FinishReason.ERROR, "engine_numeric_error"
        links.send(submission.address, [output])
        await asyncio.sleep(0.05)

    async def scenario() -> None:
        receipts = Receipts()
        async with started(ScriptedModel(fail)) as generation:
            completion = ChatCompletion(HEAD, "think_tags", thinking=False)
            with pytest.raises(ApiError) as caught:
                await run_of(generation, receipts).answer(completion)
        assert (caught.value.status, caught.value.code) == (500, "engine_numeric_error")

    asyncio.run(scenario())
