"""A replica and its rank processes, with ranks that have no model: life, load and violent ends."""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.config import EngineConfig
from cluster.engine.async_engine import ENGINE_DEAD, AsyncEngine, EngineDeadError
from cluster.request import EngineRequest, FinishReason, RequestOutput, SamplingParams
from cluster.text.tokenizer import Tokenizer
from cluster.worker.gang import RankMain, RankSpec
from cluster.worker.process_gang import ProcessGang
from tests.cluster.engine import fake_rank

MODEL = Path(__file__).resolve().parents[3] / "configs" / "models" / "deeprequest-demo"
ENDLESS = 10**5


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


@pytest.fixture
def private_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where engines put their directories; must be empty again at the end."""
    directory = Path(tempfile.mkdtemp(prefix="dr-"))
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    left = list(directory.iterdir())
    shutil.rmtree(directory)
    assert not left


class Replica:
    """An engine that remembers every output and proves that each request ends exactly once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.outputs: dict[str, list[RequestOutput]] = {}
        self.ended: dict[str, asyncio.Event] = {}
        self.gangs: list[ProcessGang] = []
        self.progress: list[str] = []

    @contextlib.asynccontextmanager
    async def engine(
        self,
        behaviour: str = "",
        *,
        main: RankMain = fake_rank.main,
        host: str | None = None,
        **settings: Any,
    ) -> AsyncIterator[AsyncEngine]:
        def start(specs: Sequence[RankSpec]) -> ProcessGang:
            self.gangs.append(ProcessGang(main, specs))
            return self.gangs[-1]

        config = EngineConfig(**{"model_path": f"fake?{behaviour}", **settings})
        engine = AsyncEngine(config, start, self.tokenizer, self._collect, host)
        await engine.start(self.progress.append)
        try:
            yield engine
        finally:
            await engine.stop()
            assert not any(psutil.pid_exists(info.pid) for info in engine.ranks())

    def ask(self, engine: AsyncEngine, request_id: str, **params: Any) -> None:
        self.outputs[request_id] = []
        self.ended[request_id] = asyncio.Event()
        settings = SamplingParams(**{"ignore_eos": True, **params})
        engine.submit(EngineRequest(request_id, [1, 2, 3], settings))

    def last(self, request_id: str) -> RequestOutput:
        return self.outputs[request_id][-1]

    def tokens(self, request_id: str) -> list[int]:
        return [token for output in self.outputs[request_id] for token in output.token_ids]

    async def end_of(self, *request_ids: str) -> None:
        async with asyncio.timeout(30):
            for request_id in request_ids:
                await self.ended[request_id].wait()

    async def first_of(self, *request_ids: str) -> None:
        async with asyncio.timeout(30):
            while not all(self.outputs[request_id] for request_id in request_ids):
                await asyncio.sleep(0.005)

    def _collect(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            assert not self.ended[output.request_id].is_set(), "an output after the last"
            self.outputs[output.request_id].append(output)
            if output.finish_reason is not None:
                self.ended[output.request_id].set()


@pytest.fixture
def replica(tokenizer: Tokenizer, private_tmp: Path) -> Replica:
    return Replica(tokenizer)


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await scene()

    asyncio.run(limited())


def expected_tokens(num_prompt: int, count: int) -> list[int]:
    known = range(num_prompt, num_prompt + count)
    return [fake_rank.FIRST_TOKEN + n % fake_rank.NUM_TOKENS for n in known]


def no_rank_is_left(gang: ProcessGang) -> bool:
    return gang.dead().keys() == gang._processes.keys()


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
def test_requests_run_to_their_end_over_unix_sockets_and_tcp(
    replica: Replica, host: str | None
) -> None:
    async def scene() -> None:
        async with replica.engine(tensor_parallel_size=2, host=host) as engine:
            assert [info.rank for info in engine.ranks()] == [0, 1]
            assert engine.stats.kv_free_blocks == engine.stats.kv_total_blocks > 0
            for number in range(40):
                replica.ask(engine, f"r{number}", max_tokens=number + 1)
            await replica.end_of(*replica.outputs)
            await engine.check_health()
            assert engine.num_running == 0
            assert (engine.stats.running, engine.stats.waiting) == (0, 0)
            assert engine.stats.kv_free_blocks == engine.stats.kv_total_blocks

    play(scene)
    for number in range(40):
        last = replica.last(f"r{number}")
        assert last.finish_reason is FinishReason.LENGTH
        assert replica.tokens(f"r{number}") == expected_tokens(3, number + 1)
        assert last.usage is not None
        assert last.usage.completion_tokens == number + 1
    assert any("loading weights" in line for line in replica.progress)


def test_a_prompt_of_131072_tokens_reaches_every_rank(replica: Replica) -> None:
    async def scene() -> None:
        async with replica.engine(tensor_parallel_size=2, max_num_batched_tokens=2**17) as engine:
            prompt = list(range(2**17))
            request = EngineRequest("long", prompt, SamplingParams(max_tokens=3, ignore_eos=True))
            outputs = [output async for output in engine.generate(request)]
            tokens = [token for output in outputs for token in output.token_ids]
            assert tokens == expected_tokens(2**17, 3)

    play(scene)


def test_a_request_that_can_never_run_ends_with_the_reason(replica: Replica) -> None:
    async def scene() -> None:
        async with replica.engine() as engine:
            replica.ask(engine, "greedy", max_tokens=10**6)
            await replica.end_of("greedy")
            assert replica.last("greedy").finish_reason is FinishReason.ERROR
            assert "max_model_len" in (replica.last("greedy").error or "")
            replica.ask(engine, "modest", max_tokens=2)
            await replica.end_of("modest")
            assert replica.last("modest").finish_reason is FinishReason.LENGTH

    play(scene)


def test_a_stop_string_ends_the_request_in_the_core_too(replica: Replica) -> None:
    async def scene() -> None:
        stop = replica.tokenizer.decode(expected_tokens(3, 5)[-1:])
        async with replica.engine("step_s=0.001") as engine:
            replica.ask(engine, "r", max_tokens=ENDLESS, stop=(stop,))
            await replica.end_of("r")
            assert replica.last("r").finish_reason is FinishReason.STOP
            assert replica.last("r").stop_reason == stop
            while engine.stats.running:
                await asyncio.sleep(0.005)

    play(scene)


def test_abort_ends_a_request_once_at_any_stage(replica: Replica) -> None:
    async def scene() -> None:
        async with replica.engine("step_s=0.001", max_num_seqs=8) as engine:
            dice = random.Random(3)
            names = [f"r{number}" for number in range(100)]
            for name in names:
                replica.ask(engine, name, max_tokens=ENDLESS)
                await asyncio.sleep(0.001 * dice.randrange(3))
                for victim in dice.sample(names, 3):
                    engine.abort(victim)
            for name in names * 2:
                engine.abort(name)
            await replica.end_of(*names)
            assert engine.num_running == 0
            while engine.stats.running or engine.stats.waiting:
                await asyncio.sleep(0.005)
            assert engine.stats.kv_free_blocks == engine.stats.kv_total_blocks

    play(scene)
    for outputs in replica.outputs.values():
        assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
        assert outputs[-1].finish_reason is FinishReason.ABORT
        assert outputs[-1].usage is not None


def test_closing_a_generator_aborts_its_request(replica: Replica) -> None:
    async def scene() -> None:
        async with replica.engine("step_s=0.001") as engine:
            params = SamplingParams(max_tokens=ENDLESS, ignore_eos=True)
            async with contextlib.aclosing(
                engine.generate(EngineRequest("r", [1], params))
            ) as outputs:
                async for _ in outputs:
                    break
            assert engine.num_running == 0
            while engine.stats.running:
                await asyncio.sleep(0.005)

    play(scene)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_every_request_and_the_gang(replica: Replica, victim: int) -> None:
    async def scene() -> None:
        async with replica.engine("step_s=0.002", tensor_parallel_size=2) as engine:
            for number in range(8):
                replica.ask(engine, f"r{number}", max_tokens=ENDLESS)
            await replica.first_of(*replica.outputs)
            os.kill(engine.ranks()[victim].pid, signal.SIGKILL)
            await replica.end_of(*replica.outputs)
            reason = await engine.dead
            assert f"rank {victim} is gone" in reason
            with pytest.raises(EngineDeadError, match=f"rank {victim}"):
                await engine.check_health()
            with pytest.raises(EngineDeadError):
                replica.ask(engine, "late")
            engine.abort("r0")

    play(scene)
    for number in range(8):
        last = replica.last(f"r{number}")
        assert (last.finish_reason, last.error) == (FinishReason.ERROR, ENGINE_DEAD)
        assert last.usage is not None
        assert last.usage.completion_tokens == len(replica.tokens(f"r{number}"))
    assert no_rank_is_left(replica.gangs[0])


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("has_work", [True, False])
def test_a_stopped_rank_is_found_by_its_silence(
    replica: Replica, victim: int, has_work: bool
) -> None:
    async def scene() -> None:
        settings: dict[str, Any] = {"tensor_parallel_size": 2, "step_timeout_s": 1.0}
        async with replica.engine("step_s=0.002", **settings) as engine:
            if has_work:
                replica.ask(engine, "r", max_tokens=ENDLESS)
                await replica.first_of("r")
            os.kill(engine.ranks()[victim].pid, signal.SIGSTOP)
            assert f"rank {victim}" in await engine.dead
            if has_work:
                assert replica.last("r").error == ENGINE_DEAD

    play(scene)
    assert no_rank_is_left(replica.gangs[0])


def test_a_step_that_never_ends_is_found_though_the_process_lives(replica: Replica) -> None:
    async def scene() -> None:
        settings: dict[str, Any] = {"tensor_parallel_size": 2, "step_timeout_s": 0.5}
        async with replica.engine("hang_in_step=1", **settings) as engine:
            replica.ask(engine, "r", max_tokens=ENDLESS)
            assert "is older than 0.5 s" in await engine.dead
            assert replica.last("r").error == ENGINE_DEAD

    play(scene)


@pytest.mark.parametrize("culprit", [0, 1])
def test_an_exception_in_a_rank_is_the_reason_and_is_logged_once(
    replica: Replica, culprit: int, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        async with replica.engine(f"raise_in_step={culprit}", tensor_parallel_size=2) as engine:
            replica.ask(engine, "r", max_tokens=ENDLESS)
            reason = await engine.dead
            assert reason == f"rank {culprit}: ArithmeticError: the numbers went wrong"
            assert replica.last("r").error == ENGINE_DEAD

    play(scene)
    assert capfd.readouterr().err.count("Traceback") == 1


@pytest.mark.parametrize(
    ("behaviour", "main", "reason"),
    [
        ("raise_in_load=0", fake_rank.main, "rank 0: FileNotFoundError: no such checkpoint"),
        ("raise_in_load=1", fake_rank.main, "rank 1: FileNotFoundError: no such checkpoint"),
        ("die_in_load=1", fake_rank.main, "rank 1 is gone"),
        ("", fake_rank.deaf_main, "exited with code 3 before it was up"),
    ],
)
def test_a_rank_that_cannot_start_is_named_with_its_reason(
    replica: Replica, behaviour: str, main: RankMain, reason: str
) -> None:
    async def scene() -> None:
        with pytest.raises(EngineDeadError, match=reason):
            async with replica.engine(behaviour, main=main, tensor_parallel_size=2):
                pass

    play(scene)
    assert no_rank_is_left(replica.gangs[0])


def test_a_start_that_is_given_up_leaves_nothing(replica: Replica) -> None:
    async def impatient() -> None:
        async with asyncio.timeout(0.5), replica.engine("load_s=60", tensor_parallel_size=2):
            raise AssertionError("it did start")

    with pytest.raises(TimeoutError):
        play(impatient)
    assert no_rank_is_left(replica.gangs[0])


def test_drain_lets_the_running_end_and_takes_no_more(replica: Replica) -> None:
    async def scene() -> None:
        async with replica.engine("step_s=0.002") as engine:
            replica.ask(engine, "short", max_tokens=20)
            assert await engine.drain(timeout_s=30)
            assert replica.last("short").finish_reason is FinishReason.LENGTH
            with pytest.raises(EngineDeadError, match="draining"):
                replica.ask(engine, "late")
        async with replica.engine("step_s=0.002") as engine:
            replica.ask(engine, "long", max_tokens=ENDLESS)
            assert not await engine.drain(timeout_s=0.05)

    play(scene)
    assert replica.last("long").finish_reason is FinishReason.ABORT


def test_ranks_do_not_outlive_a_replica_that_is_killed(replica: Replica) -> None:
    async def scene() -> None:
        async with replica.engine("step_s=0.002", tensor_parallel_size=2) as engine:
            replica.ask(engine, "r", max_tokens=ENDLESS)
            await replica.first_of("r")
            for transport in engine._client.transports:
                transport.abort()  # what its ranks see of a killed replica
            async with asyncio.timeout(10):
                while not no_rank_is_left(replica.gangs[0]):
                    await asyncio.sleep(0.01)

    play(scene)
