import random
from collections.abc import Sequence

import numpy as np

from cluster.batch import SchedulerOutput, StartedRow
from cluster.request import SamplingParams
from cluster.worker.ngram import NgramProposer
from cluster.worker.speculative import Forecast, Speculator

FLAT = {1: 0.010, 8: 0.011, 64: 0.020, 600: 0.100}
"""A machine whose steps hardly cost more with more positions, as where weights are read."""
STEEP = {1: 0.010, 8: 0.080, 64: 0.640, 600: 6.0}
"""A machine whose steps cost by the position, as where it computes as fast as it can."""


def speculator(costs: dict[int, float], rows: int = 16, most: int = 8) -> Speculator:
    made = Speculator(NgramProposer(rows, most), rows, most, clock=lambda: 0.0)
    for _ in range(5):
        for positions, seconds in costs.items():
            made.cost.observe(positions, seconds)
    return made


def start(made: Speculator, prompts: dict[int, list[int]]) -> None:
    rows = [
        StartedRow(row, tokens, len(tokens), [], SamplingParams())
        for row, tokens in prompts.items()
    ]
    made.apply(SchedulerOutput(1, [], rows, [], []))


def follow(
    made: Speculator, texts: dict[int, list[int]], costs: dict[int, float]
) -> tuple[int, int, float]:
    """Steps in which rows write their texts, drafts made for that, and seconds."""
    left = {row: list(text) for row, text in texts.items()}
    drafts: dict[int, list[int]] = {row: [] for row in texts}
    steps, drafted, total = 0, 0, 0.0
    while left:
        steps += 1
        now: dict[int, list[int]] = {}
        for row, text in left.items():
            count = 1
            for guess, token in zip(drafts[row], text, strict=False):
                if guess != token or count == len(text):
                    break
                count += 1
            now[row] = text[:count]
            drafted += len(drafts[row])
        positions = len(left) + sum(len(drafts[row]) for row in left)
        seconds = float(np.interp(positions, list(costs), list(costs.values())))
        made.cost.observe(positions, seconds)
        total += seconds
        made_drafts = made.propose(list(now), list(now.values()))
        for (row, tokens), draft in zip(now.items(), made_drafts, strict=True):
            left[row] = left[row][len(tokens) :]
            drafts[row] = draft
            if not left[row]:
                del left[row]
    return steps, drafted, total


def noise(count: int, seed: int) -> list[int]:
    return [random.Random(seed * 1000 + n).randrange(30_000) for n in range(count)]


def test_a_copy_takes_few_steps() -> None:
    made, text = speculator(FLAT), noise(200, 1)
    start(made, {0: [*text, 7, *text[:2]]})
    steps, _, _ = follow(made, {0: text[2:]}, FLAT)
    assert steps < 200 / 5


def test_random_text_is_left_alone() -> None:
    made = speculator(FLAT)
    start(made, {0: noise(100, 2)})
    assert follow(made, {0: noise(300, 3)}, FLAT)[:2] == (300, 0)


def test_text_that_repeats_pairs_but_never_goes_on_alike_is_soon_left_alone() -> None:
    made, costs = speculator({1: 0.010, 9: 0.018}), {1: 0.010, 9: 0.018}
    start(made, {0: [5]})
    text = [token for n in range(600) for token in (1, 2, 1000 + n)]
    steps, drafted, _ = follow(made, {0: text}, costs)
    assert drafted < 100
    assert steps > 0.97 * len(text)


def test_nothing_is_lost_where_a_position_costs_as_much_as_a_step() -> None:
    made, text = speculator(STEEP), noise(200, 4)
    prompts = {row: [*text, 7, *text[:2]] for row in range(8)}
    start(made, prompts)
    _, _, seconds = follow(made, dict.fromkeys(prompts, text[2:]), STEEP)
    assert seconds < 198 * STEEP[8] / 0.97


def test_the_likeliest_positions_of_all_rows_are_taken_first() -> None:
    class Two:
        follows_unasked = True

        def start(self, started: StartedRow) -> None: ...

        def release(self, row: int) -> None: ...

        def observe(self, row: int, token_ids: Sequence[int]) -> Forecast:
            return Forecast(8, 4, int(row == 0), 1)

        def draft(self, rows: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
            return [[9] * count for count in counts]

    made = Speculator(Two(), 2, 8, clock=lambda: 0.0)
    made.cost.observe(2, 0.010)
    made.cost.observe(18, 0.034)
    for _ in range(50):
        drafts = made.propose([0, 1], [[1], [1]])
    assert len(drafts[0]) > 3
    assert drafts[1] == []


def test_a_new_request_in_a_row_starts_with_a_clean_record() -> None:
    made, text = speculator(FLAT), noise(60, 5)
    start(made, {0: [1]})
    follow(made, {0: [token for n in range(80) for token in (1, 2, 900 + n)]}, FLAT)
    made.apply(
        SchedulerOutput(
            2, [0], [StartedRow(0, [*text, 7, *text[:3]], 9, [], SamplingParams())], [], []
        )
    )
    steps, _, _ = follow(made, {0: text[3:]}, FLAT)
    assert steps < 30


def test_a_proposer_that_is_judged_by_its_drafts_alone_is_asked_again_now_and_then() -> None:
    class Stubborn:
        follows_unasked = False
        asked = 0

        def start(self, started: StartedRow) -> None: ...

        def release(self, row: int) -> None: ...

        def observe(self, row: int, token_ids: Sequence[int]) -> Forecast:
            wrong = int(self.asked > self.judged)
            self.judged = self.asked
            return Forecast(4, 0, 0, wrong)

        judged = 0

        def draft(self, rows: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
            self.asked += 1
            return [[9] * count for count in counts]

    proposer = Stubborn()
    made = Speculator(proposer, 1, 4, clock=lambda: 0.0)
    made.cost.observe(1, 0.010)
    made.cost.observe(5, 0.012)
    for _ in range(1000):
        made.propose([0], [[1]])
    assert 3 < proposer.asked < 100
