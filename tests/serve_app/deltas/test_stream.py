"""One request's deltas between a connection and a reader."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.request import FinishReason, ReasoningStop, RequestOutput, TokenLogprobs, Usage
from serve_app.deltas.stream import MAX_PENDING, DeltaStream, ReplicaLostError, merged


def text(content: str) -> RequestOutput:
    return RequestOutput("a", content=content, token_ids=[len(content)])


def test_deltas_are_taken_one_by_one_as_long_as_the_reader_keeps_up() -> None:
    async def scenario() -> None:
        stream = DeltaStream(["a"])
        given = [text(str(number)) for number in range(MAX_PENDING)]
        for output in given:
            stream.push(output, "peer")
        assert await stream.take() == given

    asyncio.run(scenario())


@pytest.mark.parametrize("times", [2, 20])
def test_a_reader_that_falls_behind_gets_all_of_the_text_in_few_deltas(times: int) -> None:
    async def scenario() -> None:
        stream = DeltaStream(["a"])
        words = [f"{number} " for number in range(times * MAX_PENDING)]
        for word in words:
            stream.push(text(word), "peer")
        taken = await stream.take()
        assert len(taken) <= MAX_PENDING
        assert "".join(output.content for output in taken) == "".join(words)
        assert sum(len(output.token_ids) for output in taken) == len(words)

    asyncio.run(scenario())


def test_a_silence_ends_the_wait_without_a_delta_as_often_as_it_happens() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        stream = DeltaStream(["a"])
        for timeout_s in (0.05, 0.02, 0.05):
            began = loop.time()
            assert await stream.take(timeout_s) == []
            assert loop.time() - began >= timeout_s
        loop.call_later(0.01, stream.push, text("x"), "peer")
        assert await stream.take(5.0) == [text("x")]
        stream.close()

    asyncio.run(scenario())


def test_deltas_that_keep_coming_never_count_as_silence() -> None:
    async def scenario() -> None:
        stream = DeltaStream(["a"])
        loop = asyncio.get_running_loop()
        for number in range(10):
            loop.call_later(0.02 * number, stream.push, text("x"), "peer")
        for _ in range(10):
            assert len(await stream.take(0.1)) == 1
        stream.close()

    asyncio.run(scenario())


def test_a_failure_is_told_after_what_arrived_before_it() -> None:
    async def scenario() -> None:
        stream = DeltaStream(["a"])
        stream.push(text("x"), "peer")
        stream.fail(ReplicaLostError())
        assert await stream.take() == [text("x")]
        with pytest.raises(ReplicaLostError):
            await stream.take()

    asyncio.run(scenario())


def test_a_failure_is_not_put_off_by_what_arrives_after_it() -> None:
    async def scenario() -> None:
        stream = DeltaStream(["a"])
        stream.push(text("x"), "peer")
        stream.fail(ReplicaLostError())
        stream.push(text("y"), "peer")
        assert await stream.take() == [text("x")]
        stream.push(text("z"), "peer")
        with pytest.raises(ReplicaLostError):
            await stream.take()

    asyncio.run(scenario())


def test_a_failure_wakes_a_reader() -> None:
    async def scenario() -> None:
        stream = DeltaStream(["a"])
        asyncio.get_running_loop().call_later(0.01, stream.fail, ReplicaLostError())
        with pytest.raises(ReplicaLostError):
            await asyncio.wait_for(stream.take(), 5)

    asyncio.run(scenario())


pieces = st.lists(
    st.builds(
        RequestOutput,
        st.just("a"),
        st.text(max_size=3),
        st.text(max_size=3),
        st.just(False),
        st.lists(st.integers(0, 9), max_size=2),
        logprobs=st.lists(st.builds(TokenLogprobs, st.floats(-9, 0)), max_size=2),
    ),
    min_size=1,
    max_size=6,
)


@given(pieces=pieces, cut=st.integers(0, 6), ended=st.integers(0, 6))
@settings(deadline=None)
def test_merging_may_happen_in_any_steps(pieces: list[RequestOutput], cut: int, ended: int) -> None:
    pieces[ended % len(pieces)].reasoning_ended = True
    pieces[-1].finish_reason, pieces[-1].usage = FinishReason.STOP, Usage(1, 2, 3, 4)
    pieces[-1].reasoning_stop = ReasoningStop.LOOP
    first = pieces[: cut % len(pieces)]
    stepwise = [*merged(first), *pieces[len(first) :]] if first else pieces
    assert merged(stepwise) == merged(pieces)
    (whole,) = merged(pieces)
    assert whole.content == "".join(piece.content for piece in pieces)
    assert whole.token_ids == [token for piece in pieces for token in piece.token_ids]
    assert whole.usage == pieces[-1].usage
    assert whole.reasoning_stop is ReasoningStop.LOOP


def test_logprobs_of_a_prompt_survive_a_slow_reader() -> None:
    told = [TokenLogprobs(-float(place), [place], [0.0]) for place in range(3)]
    parts = [RequestOutput("a", prompt_logprobs=told[:2]), RequestOutput("a"), text("x")]
    parts.append(RequestOutput("a", prompt_logprobs=told[2:]))
    (joined,) = merged(parts)
    assert joined.prompt_logprobs == told
    assert merged([text("x")])[0].prompt_logprobs is None
