"""WarmUps: the beginnings of next turns, computed while the engine has nothing else to do.

A conversation's next prompt shows this turn's answer without the thoughts before it, so every
token of the answer stands at another position than the one it was generated at, and its keys, which
are rotated by position, cannot be used again:

    this turn   [ history question <Assistant> | <think> thoughts </think> answer EOS ]
    next turn   [ history question <Assistant> | answer EOS | next question <Assistant><think> ]
                  found in the cache             computed here, before it is asked for

Owns which sequences wait for that, and the one that is being computed. Its steps run only when no
request is here, take a bounded time, and end as soon as one comes; what was computed stays in the
cache like any prefix. It takes only blocks that hold nothing, so it never pushes another prefix
out, and the thoughts just ended left as many or more. Knows no text: `NextTurn` says what is kept.
"""

from collections import deque

from cluster.batch import SchedulerOutput
from cluster.engine.kv_cache import BlockTable, KVCacheManager
from cluster.engine.request import Request
from cluster.engine.rows import Rows
from cluster.request import NextTurn, RequestStatus, SamplingParams

STEP_S = 0.02
"""About how long a request that comes meanwhile waits for a step of a warm-up."""
MAX_WAITING = 64
_FIRST_CHUNK = 16
_QUIET = SamplingParams(max_tokens=1)


class WarmUps:
    """At most one warm-up is in a row; the others wait, the newest first."""

    def __init__(self, kv: KVCacheManager, rows: Rows, max_chunk: int) -> None:
        self._kv = kv
        self._rows = rows
        self._waiting: deque[Request] = deque(maxlen=MAX_WAITING)
        self._current: Request | None = None
        self._max_chunk = max_chunk
        self._chunk = min(_FIRST_CHUNK, max_chunk)

    @property
    def has_work(self) -> bool:
        return self._current is not None or bool(self._waiting)

    @property
    def current(self) -> Request | None:
        return self._current

    def offer(self, request: Request, next_turn: NextTurn) -> None:
        """A request ended whose answer may be part of a prompt soon."""
        token_ids = next_turn_prefix(request, next_turn)
        if self._kv.enable_prefix_caching and token_ids:
            # One token more, which is never computed: only what lies before the last can be hit.
            job = Request(
                request_id="",
                token_ids=[*token_ids, next_turn.end_token_id],
                num_prompt_tokens=len(token_ids),
                params=_QUIET,
                table=BlockTable(salt=request.table.salt),
            )
            self._waiting.append(job)

    def plan(self, frame: SchedulerOutput) -> Request | None:
        """Add a step of a warm-up to an otherwise empty frame; whose it is, if any."""
        if self._current is None and not self._start(frame):
            return None
        job = self._current
        assert job is not None
        num_tokens = min(self._chunk, self._end(job) - job.num_computed)
        frame.scheduled.append(job.share(num_tokens))
        return job

    def booked(self, job: Request) -> None:
        """A step of it was computed and its blocks are published."""
        if job is self._current and job.num_computed >= self._end(job):
            self._leave(job)

    def failed(self, job: Request) -> None:
        """Its numbers went wrong: nobody may hit its blocks."""
        self._kv.discard(job.table)
        self._leave(job)

    def pause(self) -> None:
        """Give row and blocks back; it goes on from what the cache keeps of it."""
        if self._current is not None:
            job = self._current
            self._leave(job)
            self._waiting.append(job)

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step of a warm-up took so long; the next one shall take about STEP_S."""
        if num_tokens == self._chunk:
            fitting = int(self._chunk * min(max(STEP_S / max(seconds, 1e-6), 0.25), 2.0))
            self._chunk = min(max(fitting, _FIRST_CHUNK), self._max_chunk)

    def _start(self, frame: SchedulerOutput) -> bool:
        while self._waiting and self._rows.any_free:
            job = self._waiting.pop()
            table, tokens = job.table, job.token_ids
            if self._kv.num_cached_tokens(table, tokens) >= self._end(job):
                continue
            if not self._kv.can_admit_without_loss(table, tokens):
                continue
            job.num_computed = self._kv.admit(table, tokens)
            job.status = RequestStatus.RUNNING
            self._rows.enter(job)
            frame.started.append(job.started())
            self._current = job
            return True
        return False

    def _end(self, job: Request) -> int:
        """Only full blocks are of use to anybody."""
        return job.num_prompt_tokens // self._kv.block_size * self._kv.block_size

    def _leave(self, job: Request) -> None:
        self._rows.leave(job)
        self._kv.free(job.table)
        job.status = RequestStatus.PREEMPTED
        self._current = None


def next_turn_prefix(request: Request, next_turn: NextTurn) -> list[int]:
    """What the next turn's prompt begins with; [] if the prompt alone already says it."""
    output = request.token_ids[request.num_prompt_tokens :]
    begin = 0
    if next_turn.answer_follows is not None:
        if next_turn.answer_follows not in output:
            return []
        begin = len(output) - output[::-1].index(next_turn.answer_follows)
    while begin < len(output) and output[begin] in next_turn.dropped_token_ids:
        begin += 1
    answer = output[begin:]
    if answer and answer[-1] == next_turn.end_token_id:
        answer.pop()
    if not answer:
        return []
    kept = request.token_ids[: next_turn.num_kept_tokens]
    return [*kept, *answer, next_turn.end_token_id]
