"""Deployment: one model on one kind of device, and what to change where it does not fit.

Owns the order in which settings are tried when the wanted context does not fit, and what is said of
them: every refusal names settings that were computed to work.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cluster.plan.devices import DEVICES, DeviceSpec
from cluster.plan.memory import (
    BF16,
    CPU_KV_BYTES,
    CPU_KV_SHARE,
    GIB,
    GPU_OVERHEAD,
    GPU_UTILIZATION,
    ModelShape,
    Precision,
    check_tensor_parallel_size,
    kv_bytes_per_token,
    kv_room,
    longest_sequence,
    tensor_parallel_sizes,
    weight_bytes,
)
from cluster.plan.speed import decode_seconds, prefill_seconds

CPU_RANK_BYTES = 175 * 2**20
"""A rank's process before it holds anything: Python, torch, the kernels, without the pages of their
files."""
WORD_BYTES = 1600
"""Of each token that a rank knows the word of, for grammars."""
STEP_TOKENS, STEP_ROWS = 2048, 64
"""Tokens computed, and rows drawn, in a step whose activations are counted in."""
FP8_WEIGHTS = "fp8 weights (quantization: fp8)"
EXPECTED_SHARE = 0.8
"""What good engines reach of the floors: 75 to 90 %."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model, a device, and the settings that memory depends on."""

    shape: ModelShape
    max_position: int
    device: DeviceSpec
    tp: int = 1
    precision: Precision = BF16
    max_model_len: int | None = None
    """What is asked for; None takes what fits, up to `max_position`."""
    utilization: float = GPU_UTILIZATION
    kv_cache_bytes: int | None = None
    """All ranks together; None: what the device leaves."""
    max_num_seqs: int | None = None
    """Bounds the KV cache at so many requests of the longest context; None: no bound."""
    block_size: int = 16
    knows_words: bool = True
    """Whether ranks hold the vocabulary, as those of a service do: answers may follow grammars."""

    @property
    def weight_bytes(self) -> int:
        return weight_bytes(self.shape, self.tp, self.precision)

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values, on one rank."""
        return kv_bytes_per_token(self.shape, self.tp, self.precision.kv)

    @property
    def overhead_bytes(self) -> int:
        """What a rank takes beside weights and KV.

        On a CPU: the process, the vocabulary, the tables of rotary angles, a step's activations
        and its logits.
        """
        if not self.device.is_cpu:
            return GPU_OVERHEAD
        shape = self.shape
        positions = min(self.max_model_len or self.max_position, self.max_position)
        width = 4 * shape.hidden_size + 3 * shape.intermediate_size // self.tp
        rows = min(self.max_num_seqs or STEP_ROWS, STEP_ROWS)
        step = STEP_TOKENS * width * self.precision.other + rows * shape.vocab_size // self.tp * 8
        process = CPU_RANK_BYTES
        process += shape.vocab_size * WORD_BYTES if self.knows_words else 0
        return process + positions * shape.head_dim * 4 + step

    @property
    def kv_room(self) -> int:
        """Bytes one rank has for KV."""
        taken = self.weight_bytes + self.overhead_bytes
        if not self.device.is_cpu:
            room = kv_room(self.device.memory_bytes, self.weight_bytes, self.utilization)
        else:
            free = max(0, self.device.memory_bytes - self.tp * taken)
            room = min(int(free * CPU_KV_SHARE), CPU_KV_BYTES) // self.tp
            if self.kv_cache_bytes is not None:
                room = free // self.tp
        if self.kv_cache_bytes is not None:
            room = min(room, self.kv_cache_bytes // self.tp)
        return room

    @property
    def kv_tokens(self) -> int:
        """Tokens, of all requests together, that there is room for."""
        return self.kv_room // self.token_bytes

    @property
    def kv_pool_bytes(self) -> int:
        """What one rank's KV cache will take: its room, or less where requests are few."""
        if self.max_num_seqs is None or self.kv_cache_bytes is not None:
            return self.kv_room
        pages = -(-(self.max_model_len or self.max_position) // self.block_size)
        blocks = self.max_num_seqs * pages + 1
        return min(self.kv_room, blocks * self.block_size * self.token_bytes)

    @property
    def rank_bytes(self) -> int:
        """All that one rank takes."""
        return self.taken_bytes(self.kv_pool_bytes)

    def taken_bytes(self, kv_bytes: int) -> int:
        """All that one rank takes with a KV cache of so many bytes."""
        return self.weight_bytes + self.overhead_bytes + kv_bytes

    @property
    def longest_context(self) -> int:
        """Tokens of the longest sequence that fits; 0 where not one block does."""
        blocks = self.kv_tokens // self.block_size
        return max(0, min(self.max_position, longest_sequence(blocks, self.block_size)))

    @property
    def fits(self) -> bool:
        """Whether the asked context fits; where none is asked, whether any does."""
        return self.problem is None

    @property
    def problem(self) -> str | None:
        """Why it does not fit, with the numbers.

        Raises:
            ValueError: the ranks do not divide the model.
        """
        check_tensor_parallel_size(self.shape, self.tp)
        asked, longest = self.max_model_len, self.longest_context
        if asked is not None and asked > self.max_position:
            return (
                f"max_model_len {asked:,} is more than the model's {self.max_position:,} positions"
            )
        if longest == 0:
            return (
                f"{gib(self.weight_bytes)} of weights a rank and {gib(self.overhead_bytes)} beside "
                f"them leave no room for KV in {gib(self._usable_bytes)} of {self.device.name}"
            )
        if asked is not None and asked > longest:
            return (
                f"max_model_len {asked:,} does not fit: the longest context is {longest:,} tokens"
            )
        return None

    def concurrency(self, length: int) -> int:
        """Requests of `length` tokens each that fit at once."""
        pages = -(-length // self.block_size)
        return max(0, self.kv_tokens // self.block_size - 1) // pages

    def decode_seconds(self, batch: int, context: int) -> float:
        """The floor of a step of `batch` requests with `context` tokens each."""
        machine = self.device.machine(self.tp, self.precision.linear)
        return decode_seconds(
            self.shape, machine, self.tp, batch=batch, context=context, precision=self.precision
        )

    def prefill_seconds(self, length: int) -> float:
        """The floor of one prompt."""
        machine = self.device.machine(self.tp, self.precision.linear)
        return prefill_seconds(
            self.shape, machine, self.tp, length=length, precision=self.precision
        )

    @property
    def _usable_bytes(self) -> int:
        if self.device.is_cpu:
            return self.device.memory_bytes // self.tp
        return int(self.device.memory_bytes * self.utilization)


def remedies(deployment: Deployment) -> list[str]:
    """Settings under which what was asked for fits, the least change first; one line each."""
    if deployment.max_model_len is not None and deployment.max_model_len > deployment.max_position:
        return [f"max_model_len: {deployment.max_position}"]
    found = [words for words, changed in _changes(deployment) if changed.fits]
    if found:
        return found
    return [f"{changed.tp} x {changed.device.name}" for changed in _other_devices(deployment)][:3]


def advice(deployment: Deployment) -> str:
    """The remedies that are the engine's own settings, as the end of a sentence; or nothing."""
    lines = [line for line in remedies(deployment) if " x " not in line]
    return f"; what would fit: {' or '.join(lines)}" if lines else ""


def _changes(deployment: Deployment) -> Iterator[tuple[str, Deployment]]:
    longest = deployment.longest_context
    if deployment.max_model_len is not None and longest:
        yield f"max_model_len: {longest}", replace(deployment, max_model_len=longest)
    if deployment.device.is_cpu:
        yield from _more_cpu_cache(deployment)
        return
    ranks = list(_more_ranks(deployment))
    yield from ranks
    if deployment.precision.linear > 1:
        narrower = replace(deployment, precision=replace(deployment.precision, linear=1))
        yield FP8_WEIGHTS, narrower
        if not ranks and not narrower.fits:
            for words, changed in _more_ranks(narrower):
                yield f"{FP8_WEIGHTS}, {words}", changed


def _more_cpu_cache(deployment: Deployment) -> Iterator[tuple[str, Deployment]]:
    wanted = (deployment.max_model_len or deployment.block_size) + 2 * deployment.block_size
    num_bytes = wanted * deployment.token_bytes * deployment.tp
    tenths = -(-num_bytes * 10 // GIB)
    changed = replace(deployment, kv_cache_bytes=tenths * GIB // 10)
    yield f"kv_cache_gib: {tenths / 10:g}", changed


def _more_ranks(deployment: Deployment) -> Iterator[tuple[str, Deployment]]:
    """The next number of ranks that is enough."""
    for size in tensor_parallel_sizes(deployment.shape):
        changed = replace(deployment, tp=size)
        if size > deployment.tp and changed.fits:
            yield f"tensor_parallel_size: {size}", changed
            return


def _other_devices(deployment: Deployment) -> list[Deployment]:
    """The fewest of each kind of GPU that are enough, the cheapest first."""
    asked = replace(deployment, kv_cache_bytes=None)
    enough = []
    for spec in (spec for spec in DEVICES if not spec.is_cpu):
        sizes = tensor_parallel_sizes(deployment.shape)
        tried = (replace(asked, device=spec, tp=size) for size in sizes)
        enough += [changed for changed in tried if changed.fits][:1]
    return sorted(enough, key=lambda changed: changed.tp * changed.device.price_per_hour)


def gib(num_bytes: int) -> str:
    """Bytes for people."""
    return f"{num_bytes / GIB:.2f} GiB"
