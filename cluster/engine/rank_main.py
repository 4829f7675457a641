"""rank_main: what a rank process does, from its first breath.

    rank 0                              rank 1 ... N-1
    listen for the others               -
    greet the replica, get Start        greet the replica, get Start
    let the others in                   dial rank 0
    load, size and allocate the cache   the same (collective)
    warm-up steps                       follow frames for ever
    Ready, then CoreLoop for ever

Owns that order, and the process edge: whatever goes wrong is logged once, reported to the replica
and ends the process. Imports torch only inside a rank, after the rank's environment was set.
"""

import gc
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from cluster.batch import SchedulerOutput, decode_scheduler_output
from cluster.config import EngineConfig
from cluster.engine.core_loop import CoreLoop
from cluster.engine.core_messages import EngineFacts, Progress, Ready, Start
from cluster.engine.engine_core import EngineCore
from cluster.engine.grammar_wait import GrammarWait
from cluster.engine.kv_cache import KVCacheManager
from cluster.engine.rank_link import RankLink
from cluster.engine.scheduler import Scheduler, SchedulerConfig
from cluster.request import EngineRequest, SamplingParams
from cluster.worker.channel import (
    Channel,
    ChannelClosedError,
    Listener,
    join,
)
from cluster.worker.executor import SETTLE, Executor, GangExecutor, Launched
from cluster.worker.gang import RankSpec
from cluster.worker.grammar_call import GrammarCall, answered_grammar

COLLECTIVE_TIMEOUT_S = 600.0
"""Behind the watch of steps; ranks may load at different speeds."""
WARM_UP_TOKENS, WARM_UP_DRAWN = 96, 2
"""Of a prompt that no kernel for short rows takes, and behind it."""
PEER_END_S = 0.25
"""A collective fails a moment before the dead rank's channel ends."""
HEARSAY_S = 0.5
"""How long a rank leaves it to the replica to find out itself what became of another rank."""

_log = logging.getLogger(__name__)


class RankWorker(Protocol):
    """What a rank needs of `cluster.worker.worker.Worker`."""

    @property
    def facts(self) -> Any:
        """Has at least the fields of EngineFacts."""

    def load(self) -> None: ...

    def num_kv_blocks(self) -> int: ...

    def init_kv_cache(self, num_blocks: int) -> None: ...

    def launch(self, frame: SchedulerOutput) -> Launched: ...

    def follow(self, frame: SchedulerOutput | None) -> None: ...

    def compile_grammar(self, source: str, done: Callable[[], None]) -> None: ...


MakeWorker = Callable[[RankSpec, str], RankWorker]
"""(spec, rendezvous of the ranks) -> worker."""


def main(spec: RankSpec) -> None:
    """A rank with the real Worker."""
    run_rank(spec, _torch_worker)


def run_rank(spec: RankSpec, make_worker: MakeWorker) -> None:
    """Be this rank until the replica or another rank is gone; then the process ends."""
    link = RankLink(spec)
    peers: dict[int, Channel] = {}
    try:
        if spec.rank == 0:
            _lead(spec, link, peers, make_worker)
        else:
            _follow(spec, link, peers, make_worker)
    except Exception as error:
        lost = _lost(peers)
        if lost is None and not isinstance(error, ChannelClosedError):
            _log.exception("rank %d failed", spec.rank)
            link.fail(f"{type(error).__name__}: {error}")
        time.sleep(HEARSAY_S)  # normally the replica knows, and ends this process meanwhile
        link.fail(lost or str(error))


def _lead(
    spec: RankSpec, link: RankLink, peers: dict[int, Channel], make_worker: MakeWorker
) -> None:
    listener = Listener(_listening_address(spec, link))
    start = link.greet(Start(listener.address, _rendezvous(spec, link)))
    while len(peers) < spec.size - 1:
        rank, channel = listener.accept(spec.token)
        peers[rank] = channel
    listener.close()
    worker = _ready_worker(spec, link, start, make_worker)
    for channel in peers.values():
        channel.receive()  # it is ready, too
    facts = msgspec.convert(worker.facts, EngineFacts, from_attributes=True)
    executor = GangExecutor(worker, list(peers.values()))
    link.send(Progress("warming up"))
    _warm_up(engine_core(spec.config, facts, executor), facts, link)
    gc.collect()
    gc.freeze()  # what is loaded stays: no collection between steps need walk it again
    grammars = GrammarWait(GrammarCall(worker, executor.tell, list(peers.values())))
    loop = CoreLoop(engine_core(spec.config, facts, executor), link, grammars)
    loop.report([])
    link.send(Ready(facts))
    loop.run()


def _follow(
    spec: RankSpec, link: RankLink, peers: dict[int, Channel], make_worker: MakeWorker
) -> None:
    start = link.greet(None)
    channel = peers[0] = join(start.ranks_address, spec.token, spec.rank)
    worker = _ready_worker(spec, link, start, make_worker)
    gc.collect()
    gc.freeze()
    channel.send(b"")
    while True:
        frame = channel.receive()
        with link.busy():
            if not answered_grammar(frame, worker, channel):
                worker.follow(decode_scheduler_output(frame) if frame != SETTLE else None)


def _ready_worker(
    spec: RankSpec, link: RankLink, start: Start, make_worker: MakeWorker
) -> RankWorker:
    worker = make_worker(spec, start.rendezvous)
    if spec.rank == 0:
        link.send(Progress("loading weights"))
    worker.load()
    worker.init_kv_cache(worker.num_kv_blocks())
    return worker


def engine_core(config: EngineConfig, facts: EngineFacts, executor: Executor) -> EngineCore:
    """A scheduler with empty books over these ranks."""
    limits = SchedulerConfig(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=facts.max_model_len,
        enable_chunked_prefill=config.enable_chunked_prefill,
        target_gap_s=None if config.target_gap_ms is None else config.target_gap_ms / 1000,
    )
    kv = KVCacheManager(facts.num_kv_blocks, facts.block_size, config.enable_prefix_caching)
    scheduler = Scheduler(limits, kv, frozenset(facts.eos_token_ids))
    plans_ahead = config.async_scheduling
    if plans_ahead is None:
        plans_ahead = facts.computes_apart
    return EngineCore(scheduler, executor, plans_ahead)


def _warm_up(core: EngineCore, facts: EngineFacts, link: RankLink) -> None:
    """A prefill, a decode and a released row through all ranks, drawn by chance and greedily, on
    books that are thrown away: what is compiled on its first use is compiled now."""
    room = min(facts.max_model_len, (facts.num_kv_blocks - 1) * facts.block_size)
    prompt = [0] * max(1, min(WARM_UP_TOKENS, room - WARM_UP_DRAWN))
    for name, temperature in (("by chance", 1.0), ("greedy", 0.0)):
        params = SamplingParams(temperature=temperature, max_tokens=WARM_UP_DRAWN, ignore_eos=True)
        core.add(EngineRequest(name, prompt, params))
        while core.has_work:
            with link.busy():
                core.step()


def _listening_address(spec: RankSpec, link: RankLink) -> str:
    if spec.directory is not None:
        return f"seqpacket://{spec.directory}/ranks.sock"
    return f"tcp://{link.local_host}:0"


def _rendezvous(spec: RankSpec, link: RankLink) -> str:
    if spec.directory is not None:
        return f"file://{spec.directory}/store"
    with socket.create_server((link.local_host, 0)) as probe:
        return f"tcp://{link.local_host}:{probe.getsockname()[1]}"


def _lost(peers: dict[int, Channel]) -> str | None:
    """The rank whose end explains an error here, if any."""
    for rank, channel in peers.items():
        if channel.hung_up(PEER_END_S / len(peers)):
            return f"lost rank {rank}"
    return None


def _torch_worker(spec: RankSpec, rendezvous: str) -> RankWorker:
    from cluster.device import Device
    from cluster.model.tp_group import TPGroup
    from cluster.text.grammar_book import GrammarBook
    from cluster.worker.worker import Worker

    device = Device.select(spec.config.device, spec.rank)
    backend = device.collectives_backend(spec.config.collectives)
    group = TPGroup.join(
        spec.rank,
        spec.size,
        rendezvous,
        backend,
        COLLECTIVE_TIMEOUT_S,
        ordered=spec.config.deterministic,
        device=device.torch_device,
    )
    return Worker(spec.config, spec.rank, group, GrammarBook(spec.config.model_path))
