from collections import Counter

from cluster.batch import ModelRunnerOutput, SchedulerOutput, StartedRow
from cluster.request import SamplingParams
from cluster.worker.draft_model import DraftLimits, DraftModel

STEP_TOKENS = 16


def test_prompts_too_long_for_a_step_of_the_small_model_take_several() -> None:
    frames: list[SchedulerOutput] = []

    def execute(frame: SchedulerOutput) -> ModelRunnerOutput:
        frames.append(frame)
        rows = [share.row for share in frame.scheduled if share.samples]
        return ModelRunnerOutput(frame.step, rows, [[7] for _ in rows])

    model = DraftModel(execute, DraftLimits(200, 60, 4, STEP_TOKENS, 300), 3)
    lengths = {0: 50, 1: 30, 2: 1}
    for row, length in lengths.items():
        model.start(StartedRow(row, [5] * length, length, [], SamplingParams()))
    assert model.draft([0, 1, 2], [2, 2, 2]) == [[7, 7]] * 3
    assert all(sum(s.num_tokens for s in f.scheduled) <= STEP_TOKENS for f in frames)
    computed: Counter[int] = Counter()
    for share in (share for frame in frames for share in frame.scheduled):
        assert share.num_computed == computed[share.row], "positions are contiguous"
        computed[share.row] += share.num_tokens
    assert computed == {row: length + 1 for row, length in lengths.items()}
    entered: set[int] = set()
    for frame in frames:
        entered -= set(frame.released)
        assert not entered & {started.row for started in frame.started}
        entered |= {started.row for started in frame.started}
        assert {share.row for share in frame.scheduled} <= entered
