"""Generation against scripted replicas that talk over real delta links."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from cluster.request import EngineRequest, FinishReason, RequestOutput, SamplingParams, Usage
from serve_app.answer_run import AnswerRun
from serve_app.choices import fork
from serve_app.deltas import (
    DeltaLinks,
    DeltaServer,
    ReplicaLostError,
    Submission,
    accepted,
)
from serve_app.generation import Generation
from serve_app.metrics import Metrics
from serve_app.openai.chat import ChatCompletion, ChatStream
from serve_app.openai.chat_choice import ChatStyle
from serve_app.openai.errors import ApiError
from serve_app.openai.response import ResponseHead
from serve_app.tenancy.session import StopReason
from tests.serve_app.tenancy.world import until

Script = Callable[[DeltaLinks, Submission], Awaitable[None]]
REQUEST = EngineRequest("r", [1, 2, 3], SamplingParams())
STYLE = ChatStyle("think_tags", thinking=False)
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

    queued_s = 0.25

    def __init__(self) -> None:
        self.settled: list[tuple[int, int, int, str]] = []

    def settle(
        self,
        *,
        prompt_tokens: int,
        output_tokens: int,
        cached_tokens: int,
        reasoning_tokens: int,
        outcome: str,
    ) -> None:
        assert reasoning_tokens <= output_tokens
        self.settled.append((prompt_tokens, output_tokens, cached_tokens, outcome))


def delta(
    submission: Submission, text: str, *, last: bool = False, choice: int = 0
) -> RequestOutput:
    output = RequestOutput(submission.requests[choice].request_id, content=text, token_ids=[7])
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
    links.send(submission.address, [accepted(submission.requests[0].request_id)])
    await asyncio.sleep(0.05)
    raise ReplicaLostError


async def break_down(links: DeltaLinks, submission: Submission) -> None:
    raise ZeroDivisionError


async def never_finish(links: DeltaLinks, submission: Submission) -> None:
    links.send(submission.address, [delta(submission, "a")])
    await asyncio.sleep(60)


@contextlib.asynccontextmanager
async def started(model: ScriptedModel, n: int = 1) -> AsyncIterator[Generation]:
    server = DeltaServer("127.0.0.1", range(29100, 29200))
    await server.start()
    try:
        yield Generation(fork(REQUEST, n), model, server)
    finally:
        await server.stop()


async def text_of(generation: Generation) -> str:
    text = ""
    async with contextlib.aclosing(generation.outputs(lambda: 5)) as batches:
        async for batch in batches:
            text += "".join(choice.output.content for choice in batch)
    return text


def run_of(
    generation: Generation, receipts: Receipts, timeout_s: float = 60, keep_alive_s: float = 0.05
) -> AnswerRun:
    loop_time = asyncio.get_running_loop().time()
    return AnswerRun(
        generation,
        receipts,
        Metrics("i"),
        arrived=loop_time,
        timeout_s=timeout_s,
        keep_alive_s=keep_alive_s,
    )


@pytest.mark.parametrize(
    ("reason", "error"),
    [("cancelled", (409, "request_cancelled")), ("revoked", (401, "invalid_api_key"))],
)
def test_a_stopped_request_brings_what_it_has_then_its_error_and_is_charged_as_aborted(
    reason: StopReason, error: tuple[int, str]
) -> None:
    async def scenario() -> None:
        model, receipts = ScriptedModel(never_finish), Receipts()
        async with started(model) as generation:
            run = run_of(generation, receipts)
            asyncio.get_running_loop().call_later(0.1, run.stop, reason)
            completion = ChatCompletion(HEAD, STYLE)
            with pytest.raises(ApiError) as caught:
                await run.answer(completion)
            assert (caught.value.status, caught.value.code) == error
            assert receipts.settled == [(3, 1, 0, "abort")]
            await asyncio.sleep(0)
            assert model.cancelled == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("aborted", [True, False], ids=["aborted", "lost"])
def test_a_request_stopped_as_its_replica_dies_ends_with_the_error_of_the_stop(
    aborted: bool,
) -> None:
    async def scenario() -> None:
        async def die(links: DeltaLinks, submission: Submission) -> None:
            links.send(submission.address, [delta(submission, "a")])
            await asyncio.sleep(0.05)
            if not aborted:  # the stop comes after the loss, before the loss wakes the reader
                asyncio.get_running_loop().call_soon(run.stop, "revoked")
                raise ReplicaLostError
            last = delta(submission, "", last=True)
            last.finish_reason = FinishReason.ABORT
            generation._deltas.deliver([last], links)
            run.stop("revoked")

        async with started(ScriptedModel(die)) as generation:
            run = run_of(generation, Receipts(), keep_alive_s=60)  # nothing else may wake it
            with pytest.raises(ApiError) as caught:
                await run.answer(ChatCompletion(HEAD, STYLE))
            assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")

    asyncio.run(scenario())


def test_a_request_stopped_before_it_is_read_never_runs_long() -> None:
    async def scenario() -> None:
        async with started(ScriptedModel(never_finish)) as generation:
            generation.interrupt(ZeroDivisionError())
            with pytest.raises(ZeroDivisionError):
                await text_of(generation)

    asyncio.run(scenario())


def test_phases_are_timed_as_they_end() -> None:
    async def scenario() -> None:
        async with started(ScriptedModel(answer)) as generation:
            run = run_of(generation, Receipts())
            assert run.server_timing() == "queue;dur=250.0"
            await run.answer(ChatCompletion(HEAD, STYLE))
            phases = dict(part.split(";dur=") for part in run.server_timing().split(", "))
            assert list(phases) == ["queue", "prefill", "decode"]
            assert float(phases["decode"]) >= 10

    asyncio.run(scenario())


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
            events = run.events(ChatStream(HEAD, STYLE))
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
            completion = ChatCompletion(HEAD, STYLE)
            body = await run_of(generation, receipts).answer(completion)
        assert b'"content":"ab"' in body
        assert receipts.settled == [(3, 2, 1, "ok")]

    asyncio.run(scenario())


def test_a_lost_replica_is_one_error_event_without_done() -> None:
    async def scenario() -> None:
        receipts = Receipts()
        async with started(ScriptedModel(die_after_a_delta)) as generation:
            stream = ChatStream(HEAD, STYLE)
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
            stream = ChatStream(HEAD, STYLE)
            run = run_of(generation, receipts, timeout_s=0.3)
            events = [event async for event in run.events(stream)]
            await until(lambda: model.cancelled == 1)
        assert any(event.startswith(b":") for event in events)
        assert b'"timeout"' in events[-1]

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
            completion = ChatCompletion(HEAD, STYLE)
            with pytest.raises(ApiError) as caught:
                await run_of(generation, receipts).answer(completion)
        assert (caught.value.status, caught.value.code) == (500, "engine_numeric_error")

    asyncio.run(scenario())


async def answer_twice(links: DeltaLinks, submission: Submission) -> None:
    """The second choice ends first."""
    links.send(submission.address, [delta(submission, "a"), delta(submission, "c", choice=1)])
    links.send(submission.address, [delta(submission, "d", last=True, choice=1)])
    await asyncio.sleep(0.01)
    links.send(submission.address, [delta(submission, "b", last=True)])
    await asyncio.sleep(0.05)


def test_choices_are_told_apart_and_their_prompt_is_charged_once() -> None:
    async def scenario() -> None:
        receipts = Receipts()
        async with started(ScriptedModel(answer_twice), n=2) as generation:
            completion = ChatCompletion(HEAD, STYLE, n=2)
            body = await run_of(generation, receipts).answer(completion)
        assert body.index(b'"content":"ab"') < body.index(b'"content":"cd"')
        assert b'"prompt_tokens":3,"completion_tokens":4,' in body
        assert receipts.settled == [(3, 4, 1, "ok")]

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", [0, 1])
def test_one_choice_that_fails_ends_all_of_them_with_one_error(broken: int) -> None:
    async def fail(links: DeltaLinks, submission: Submission) -> None:
        links.send(submission.address, [delta(submission, "a"), delta(submission, "c", choice=1)])
        output = delta(submission, "", choice=broken)
        output.finish_reason, output.error = FinishReason.ERROR, "engine_numeric_error"
        links.send(submission.address, [output])
        await asyncio.sleep(60)

    async def scenario() -> None:
        receipts, model = Receipts(), ScriptedModel(fail)
        async with started(model, n=2) as generation:
            stream = ChatStream(HEAD, STYLE, n=2)
            events = [event async for event in run_of(generation, receipts).events(stream)]
            await asyncio.sleep(0.05)
        assert b"engine_numeric_error" in events[-1]
        assert b"".join(events).count(b'"error"') == 1
        assert b"[DONE]" not in b"".join(events)
        assert model.cancelled == 1
        assert [outcome for *_, outcome in receipts.settled] == ["error"]

    asyncio.run(scenario())
