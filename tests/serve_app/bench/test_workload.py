"""What a benchmark's figures are made of."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.bench.workload import Clock, Prompts, Stamp, Workload, check, measured, rates


def workload(folder: Path, **changes: Any) -> Workload:
    (folder / "config.json").write_text(json.dumps({"vocab_size": 1000}))
    return Workload(folder, (1, 2), 4, 6, 8)._replace(**changes)


def instant_engine(prompts: list[list[int]], tokens: int) -> list[Stamp]:
    """A step every 100 ms; each brings every prompt a token."""
    rows = len(prompts)
    return [Stamp(0.1 * step, rows * step, rows) for step in range(1, tokens + 1)]


def test_the_first_tokens_are_not_part_of_the_decode_rate() -> None:
    stamps = [Stamp(5.0, 2, 2), Stamp(6.0, 4, 2), Stamp(7.0, 6, 2)]
    decode, whole = rates(stamps, 2)
    assert decode == 2 * (3 - 1) / (7.0 - 5.0)
    assert whole == pytest.approx(6 / 7.0)


def test_tokens_that_came_before_the_last_first_token_do_not_count_as_decoded() -> None:
    stamps = [Stamp(1.0, 1, 1), Stamp(2.0, 3, 2), Stamp(3.0, 5, 2)]
    assert rates(stamps, 2)[0] == 2.0


def test_every_phase_gives_its_row(tmp_path: Path) -> None:
    rows = list(measured(workload(tmp_path), instant_engine))
    assert [row["kind"] for row in rows] == [
        "ttft", "decode", "end_to_end", "decode", "end_to_end", "prefill", "memory",
    ]  # fmt: skip
    assert rows[0] == {"kind": "ttft", "prompt_len": 4, "ms": 100.0}
    assert rows[3] == {"kind": "decode", "batch": 2, "tokens_per_s": 20.0}
    assert rows[5] == {"kind": "prefill", "length": 8, "tokens_per_s": 80.0}
    assert rows[6]["mb"] > 1


def test_no_long_prompt_is_asked_when_its_length_is_0(tmp_path: Path) -> None:
    rows = measured(workload(tmp_path, prefill_len=0), instant_engine)
    assert "prefill" not in {row["kind"] for row in rows}


def test_prompts_are_distinct_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    one, same = (Prompts(workload(tmp_path)).draw(8, 16) for _ in range(2))
    other = Prompts(workload(tmp_path, seed=1)).draw(8, 16)
    assert one == same != other
    assert len({tuple(prompt) for prompt in one}) == 8
    assert all(0 <= token < 1000 for prompt in one for token in prompt)


def test_a_clock_stamps_no_step_before_the_first_token() -> None:
    clock = Clock(2)
    clock.stamp()
    clock.add(1, 1)
    clock.stamp()
    assert [(stamp.tokens, stamp.started) for stamp in clock.stamps] == [(1, 1)]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"batches": (0,)}, "batch"), ({"output_len": 1}, "output-len"), ({"rounds": 0}, "rounds")],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        check(workload(tmp_path, **change))
