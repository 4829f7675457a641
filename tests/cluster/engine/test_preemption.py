"""Who is preempted: the one that costs least to compute again, if it matters, else the youngest."""

from cluster.batch import ModelRunnerOutput
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.preemption import price, victim
from cluster.engine.request import Request
from cluster.engine.scheduler import Scheduler, SchedulerConfig
from cluster.request import EngineRequest, SamplingParams

BLOCK = 4


def holding(kv: KVCacheManager, prompt: list[int], num_computed: int) -> Request:
    request = Request.of(EngineRequest("r", prompt, SamplingParams()))
    request.num_computed = kv.admit(request.table, prompt)
    request.num_computed = max(request.num_computed, num_computed)
    kv.commit(request.table, request.token_ids, request.num_computed)
    return request


def test_a_block_costs_the_tokens_that_must_be_computed_again_for_it() -> None:
    kv = KVCacheManager(40, BLOCK, True)
    assert price(holding(kv, [1] * 20, 20), BLOCK) == 4.0
    assert price(holding(kv, [2] * 40, 5), BLOCK) == 0.5


def test_shared_blocks_are_neither_given_back_nor_computed_again() -> None:
    kv = KVCacheManager(40, BLOCK, True)
    first = holding(kv, [1] * 20, 20)
    second = holding(kv, [1] * 16 + [2] * 8, 24)
    assert price(second, BLOCK) == 8 / 2
    assert price(first, BLOCK) == 4 / 1


def test_a_request_that_gives_nothing_back_is_never_worth_it() -> None:
    kv = KVCacheManager(40, BLOCK, True)
    first = holding(kv, [1] * 9, 9)
    first.table.blocks.pop()
    holding(kv, [1] * 9, 9)
    assert price(first, BLOCK) == float("inf")


def test_between_equals_the_youngest_goes() -> None:
    kv = KVCacheManager(40, BLOCK, True)
    candidates = [holding(kv, [number] * 10, 10) for number in range(3)]
    assert victim(candidates, BLOCK) is candidates[-1]


def test_a_prompt_hardly_begun_goes_before_a_younger_answer() -> None:
    kv = KVCacheManager(60, BLOCK, True)
    decoding, chunked, young = (
        holding(kv, [1] * 40, 40),
        holding(kv, [2] * 40, 4),
        holding(kv, [3] * 12, 12),
    )
    assert victim([decoding, chunked, young], BLOCK) is chunked
    chunked.num_computed = 36
    assert victim([decoding, chunked, young], BLOCK) is young


def test_the_oldest_goes_on_while_there_is_another() -> None:
    kv = KVCacheManager(7, BLOCK, False)
    scheduler = Scheduler(SchedulerConfig(2, 16, 30), kv, frozenset())
    for name in ("old", "young"):
        scheduler.add(EngineRequest(name, [1] * 8, SamplingParams(max_tokens=15)))
    frames = []
    while scheduler.stats().preemptions == 0:
        frame = scheduler.schedule()
        frames.append(frame)
        rows = [share.row for share in frame.scheduled if share.samples]
        scheduler.update(frame, ModelRunnerOutput(frame.step, rows, [[1]] * len(rows)))
    assert frames[-1].released == [1]
    assert [share.row for share in frames[-1].scheduled] == [0]
