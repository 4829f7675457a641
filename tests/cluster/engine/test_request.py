"""One request while the scheduler has it: what its row is told, and how it ends."""

import pytest

from cluster.batch import AppendedRow, ScheduledRow
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.request import Request
from cluster.request import EngineRequest, FinishReason, RequestStatus, SamplingParams

ASKED = EngineRequest("a", [1, 2, 3], SamplingParams(max_tokens=2), b"salt")


def running() -> tuple[Request, KVCacheManager]:
    kv = KVCacheManager(9, 2, True)
    request = Request.of(ASKED)
    kv.admit(request.table, request.token_ids)
    request.row = 5
    return request, kv


def test_a_request_starts_with_its_prompt_and_salt() -> None:
    request = Request.of(ASKED)
    assert (request.status, request.num_missing) == (RequestStatus.WAITING, 3)
    assert (request.num_output_tokens, request.table.salt) == (0, b"salt")


def test_the_callers_prompt_does_not_grow_with_the_output() -> None:
    Request.of(ASKED).token_ids.append(9)
    assert ASKED.prompt_token_ids == [1, 2, 3]


def test_a_row_is_told_everything_once() -> None:
    request, kv = running()
    started = request.started()
    assert (started.row, started.token_ids, len(started.block_ids)) == (5, [1, 2, 3], 2)
    assert kv.grow(request.table, 5)
    appended = request.appended()
    assert appended == AppendedRow(5, request.table.block_ids[2:])
    assert request.appended().block_ids == []


def test_a_share_draws_only_when_it_catches_up() -> None:
    request, _ = running()
    assert not request.share(2).samples
    assert (request.num_missing, request.num_pending) == (1, 0)
    assert request.share(1).samples
    assert (request.num_missing, request.num_pending) == (1, 1)


def test_a_token_under_way_is_neither_missing_twice_nor_left_to_draw() -> None:
    request, _ = running()
    assert request.num_left == 2
    request.share(3)
    assert (request.num_missing, request.num_left) == (1, 1)
    assert request.share(1) == ScheduledRow(5, 3, 1, True)
    assert request.num_left == 0


def test_drafts_are_computed_behind_the_last_known_token() -> None:
    request, _ = running()
    assert request.share(3, [8, 9]) == ScheduledRow(5, 0, 5, True, [8, 9])
    assert request.num_computed == 5


def test_what_was_drawn_is_taken_up_to_the_token_that_ends_the_request() -> None:
    asked = EngineRequest("a", [1, 2], SamplingParams(max_tokens=4, stop_token_ids=(5,)))
    request = Request.of(asked)
    assert request.take([3, 4], frozenset()) == (2, None, None)
    assert request.take([6, 7, 8], frozenset()) == (2, FinishReason.LENGTH, None)
    assert request.token_ids == [1, 2, 3, 4, 6, 7]
    stopped = Request.of(asked)
    assert stopped.take([3, 5, 9], frozenset()) == (2, FinishReason.STOP, 5)


@pytest.mark.parametrize(
    ("params", "token_id", "reason", "stop_reason"),
    [
        (SamplingParams(max_tokens=9), 9, FinishReason.STOP, None),
        (SamplingParams(max_tokens=9, ignore_eos=True), 9, None, None),
        (SamplingParams(max_tokens=9, min_tokens=2), 9, None, None),
        (SamplingParams(max_tokens=9, stop_token_ids=(5,)), 5, FinishReason.STOP, 5),
        (SamplingParams(max_tokens=9, stop_token_ids=(5,), min_tokens=2), 5, None, None),
        (SamplingParams(max_tokens=9, stop_token_ids=(5,)), 6, None, None),
        (SamplingParams(max_tokens=1), 6, FinishReason.LENGTH, None),
        (SamplingParams(max_tokens=1), 9, FinishReason.STOP, None),
    ],
)
def test_the_first_token_ends_a_request_or_not(
    params: SamplingParams, token_id: int, reason: FinishReason | None, stop_reason: int | None
) -> None:
    request = Request.of(EngineRequest("a", [1, 2], params))
    request.token_ids.append(token_id)
    assert request.end(frozenset({9})) == (reason, stop_reason)


def test_a_request_held_by_min_tokens_ends_at_the_first_stop_after_them() -> None:
    request = Request.of(EngineRequest("a", [1, 2], SamplingParams(max_tokens=9, min_tokens=2)))
    request.token_ids += [9, 9]
    assert request.end(frozenset({9})) == (FinishReason.STOP, None)
