"""All that crosses to a rank in one step, its wire encoding, and rank 0's answer.

A *row* is a slot of the workers' persistent batch (0 … max_num_seqs - 1). The scheduler hands
rows out and takes them back; every rank mirrors the same rows from the same frames, so a step
names a request by its row alone.

    started   row gets a request (new, or resumed after preemption): its known tokens and blocks
    appended  rows that are already known: blocks they were given since
    scheduled which rows compute how many tokens in this step, from which position
    released  rows whose request left (finished, aborted, preempted) before this step

Order within a frame: released, started, appended, then scheduled. What a row draws is in no frame:
every rank draws the same and appends it itself, so a frame may be planned before the answer to the
one before it is known. Knows no torch and no sockets.
"""

import msgspec

from cluster.request import SamplingParams, TokenLogprobs


class StartedRow(msgspec.Struct, array_like=True):
    """A request entering a row."""

    row: int
    token_ids: list[int]
    """All known tokens: the prompt, then what was generated before a preemption."""
    num_prompt_tokens: int
    block_ids: list[int]
    params: SamplingParams
    prediction_token_ids: list[int] = []
    """What the output may repeat; for the proposer."""


class AppendedRow(msgspec.Struct, array_like=True):
    """Blocks that a row was given since the last frame."""

    row: int
    block_ids: list[int]


class ScheduledRow(msgspec.Struct, array_like=True):
    """One row's share: compute `num_tokens` tokens from position `num_computed`.

    known     [ p p p p t ]
    drafts                [ a b ]       num_computed 4, num_tokens 3
    draws behind        t   a b         1 + len(drafts) sampling positions
    """

    row: int
    num_computed: int
    num_tokens: int
    """Known tokens, and behind the last known one the drafts."""
    samples: bool
    """Whether the last known token is among them, so that a new token is drawn."""
    draft_token_ids: list[int] = []
    """Guesses that are computed as if they were known; only where `samples`."""


class SchedulerOutput(msgspec.Struct, array_like=True):
    """One step, the same frame for every rank. `scheduled` may be empty (bookkeeping only)."""

    step: int
    released: list[int]
    started: list[StartedRow]
    appended: list[AppendedRow]
    scheduled: list[ScheduledRow]

    @property
    def total_tokens(self) -> int:
        return sum(scheduled.num_tokens for scheduled in self.scheduled)


class ModelRunnerOutput(msgspec.Struct):
    """Rank 0's answer: what every sampling row drew, in the order of `scheduled`.

    It never travels: the engine core lives in rank 0's process.
    """

    step: int
    rows: list[int]
    token_ids: list[list[int]]
    """Per row: the drafts that stand, then one newly drawn token."""
    failed_rows: list[int] = []
    """Rows whose numbers were not finite, or that no id was allowed to; they drew no token and
    must end with an error. A row that only computed may be among them."""
    draft_token_ids: list[list[int]] = []
    """Per row: what the proposer would compute ahead in the row's next step; may be left out."""
    logprobs: list[list[TokenLogprobs] | None] = []
    """Per row, one per token where the request asked for them; may be left out."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
    """Of rows that ask for them: one per prompt token that follows one which was computed."""
    ungrammatical_rows: list[int] = []
    """Those of the failed rows whose numbers were finite, but whose grammar allowed nothing."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(SchedulerOutput)


def encode(frame: SchedulerOutput) -> bytes:
    """The frame as msgpack bytes."""
    return _encoder.encode(frame)


def decode_scheduler_output(data: bytes | memoryview) -> SchedulerOutput:
    """Raises msgspec.DecodeError on a malformed frame."""
    return _decoder.decode(data)
