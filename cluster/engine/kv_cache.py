"""The paged KV cache's books: which block belongs to whom, and which prefix it holds.

Owns block ids, reference counts, the free list and the prefix cache. Refuses to know torch, what
a block holds on the device, rows and scheduling.

    BlockTable of A   [ 3 | 7 | 5 ]     token p of A lives in blocks[p // block_size]
    BlockTable of B   [ 3 | 7 | 9 ]     the full blocks 3 and 7 are shared, 5 and 9 are written

    digest(3) = sha256(root | tokens 0..15)           root = sha256(b"deeprequest" | cache_salt)
    digest(7) = sha256(digest(3) | tokens 16..31)     so a digest names the whole prefix before it

    free list   LRU end [ no content ... | cached, oldest ... newest ]
                        take() ->                        <- a block nobody uses any more

Every block but number 0 is in one of three states; `check_integrity` proves it:

    used     ref_count > 0    held by that many tables
    cached   ref_count = 0    in the free list, still found by its digest until it is taken
    free     ref_count = 0    in the free list, without a digest

Block 0 is the dummy block that padding may point to; it is never handed out. Only full, computed
blocks get a digest, so a shared block is never written again.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_STRIDE = 32
"""Blocks that are hashed at once: a prompt nobody knows is hashed as it is computed, not before."""


@dataclass(slots=True, eq=False)
class Block:
    """One block of KV memory and its place in the free list."""

    block_id: int
    ref_count: int = 0
    digest: bytes | None = None
    prev: "Block | None" = field(default=None, repr=False)
    next: "Block | None" = field(default=None, repr=False)


@dataclass(slots=True, eq=False)
class BlockTable:
    """What one request holds: its blocks in order, and the digests known of its full blocks.

    The digests outlive the blocks, so that a request that waits or was preempted is hashed once.
    """

    salt: bytes = b""
    takes_hits: bool = True
    """Whether what others computed will do; False: all is computed anew, for others to hit."""
    blocks: list[Block] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    num_committed: int = 0

    @property
    def block_ids(self) -> list[int]:
        return [block.block_id for block in self.blocks]


class BlockPool:
    """All blocks, the list of those nobody uses, and the index of those with known content.

    Every operation is O(1).
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(
                f"num_kv_blocks must be at least 2, not {num_blocks}: block 0 is the dummy block"
            )
        self.blocks = [Block(block_id) for block_id in range(num_blocks)]
        self.num_usable = num_blocks - 1
        self.num_unused = 0
        self.num_unused_cached = 0
        self._by_digest: dict[bytes, Block] = {}
        self._ends = Block(-1)  # the sentinel: .next is the LRU end, .prev the newest
        self._ends.prev = self._ends.next = self._ends
        for block in self.blocks[1:]:
            self._insert_before(self._ends, block)

    def find(self, digest: bytes) -> Block | None:
        """The block that holds this prefix, in use or not."""
        return self._by_digest.get(digest)

    def take(self) -> Block:
        """The least recently used block, without its old content, owned once.

        Raises:
            IndexError: every block is in use.
        """
        block = self._ends.next
        if block is None or block is self._ends:
            raise IndexError("every KV block is in use")
        self._unlink(block)
        self.forget(block)
        block.ref_count = 1
        return block

    def share(self, block: Block) -> None:
        """One more owner of a block found by its digest."""
        if block.ref_count == 0:
            self._unlink(block)
        block.ref_count += 1

    def publish(self, block: Block, digest: bytes) -> None:
        """Let a full block be found; the first block with a digest keeps it."""
        if digest not in self._by_digest:
            block.digest = digest
            self._by_digest[digest] = block

    def forget(self, block: Block) -> None:
        """Let a block in use be found no more."""
        if block.digest is not None:
            del self._by_digest[block.digest]
            block.digest = None

    def release(self, block: Block) -> None:
        """One owner less; without any, the block joins the free list with its content."""
        block.ref_count -= 1
        if block.ref_count == 0:
            after = self._ends if block.digest is not None else self._ends.next
            self._insert_before(after or self._ends, block)

    def unused(self) -> list[Block]:
        """The free list, least recently used first."""
        found = []
        block = self._ends.next
        while block is not None and block is not self._ends:
            found.append(block)
            block = block.next
        return found

    def cached(self) -> list[tuple[bytes, Block]]:
        """Every digest and its block, in use or not."""
        return list(self._by_digest.items())

    def _insert_before(self, after: Block, block: Block) -> None:
        before = after.prev or self._ends
        block.prev, block.next = before, after
        before.next = after.prev = block
        self.num_unused += 1
        self.num_unused_cached += block.digest is not None

    def _unlink(self, block: Block) -> None:
        before, after = block.prev or self._ends, block.next or self._ends
        before.next, after.prev = after, before
        block.prev = block.next = None
        self.num_unused -= 1
        self.num_unused_cached -= block.digest is not None


class KVCacheManager:
    """Gives blocks to requests and finds prompts whose beginning was computed before.

    Args:
        num_blocks: blocks in the workers' pool, the dummy block 0 included.
        block_size: tokens per block.
        enable_prefix_caching: False lets no request use another's blocks.
    """

    def __init__(self, num_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.pool = BlockPool(num_blocks)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that this many tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def num_cached_tokens(self, table: BlockTable, token_ids: Sequence[int]) -> int:
        """Tokens at the beginning of `token_ids` that need not be computed; never all of them."""
        return len(self._cached_prefix(table, token_ids)) * self.block_size

    def can_admit(self, table: BlockTable, token_ids: Sequence[int], reserve: int = 0) -> bool:
        """Whether blocks for all of `token_ids` can be given and `reserve` blocks stay unused."""
        hits = self._cached_prefix(table, token_ids)
        shared = sum(block.ref_count > 0 for block in hits)
        return self.blocks_for(len(token_ids)) - shared + reserve <= self.pool.num_unused

    def can_admit_without_loss(self, table: BlockTable, token_ids: Sequence[int]) -> bool:
        """Whether blocks for all of `token_ids` can be given and no cached prefix is lost."""
        hits = len(self._cached_prefix(table, token_ids))
        empty = self.pool.num_unused - self.pool.num_unused_cached
        return self.blocks_for(len(token_ids)) - hits <= empty

    def admit(self, table: BlockTable, token_ids: Sequence[int]) -> int:
        """Fill an empty table with blocks for all of `token_ids`; call `can_admit` before.

        Returns:
            the number of tokens whose KV the first blocks already hold.
        """
        hits = self._cached_prefix(table, token_ids)
        for block in hits:
            self.pool.share(block)
        table.blocks = hits
        table.num_committed = len(hits)
        num_cached = len(hits) * self.block_size
        while len(table.blocks) < self.blocks_for(len(token_ids)):
            table.blocks.append(self.pool.take())
        return num_cached

    def grow(self, table: BlockTable, num_tokens: int) -> bool:
        """Let the table cover `num_tokens`; False, and nothing changed, when blocks run out."""
        missing = self.blocks_for(num_tokens) - len(table.blocks)
        if missing > self.pool.num_unused:
            return False
        table.blocks.extend(self.pool.take() for _ in range(missing))
        return True

    def commit(self, table: BlockTable, token_ids: Sequence[int], num_computed: int) -> None:
        """Publish the blocks that are full now that `num_computed` tokens are computed."""
        num_full = num_computed // self.block_size
        if not self.enable_prefix_caching or num_full <= table.num_committed:
            return
        self._extend_digests(table, token_ids, num_full)
        for index in range(table.num_committed, num_full):
            self.pool.publish(table.blocks[index], table.digests[index])
        table.num_committed = num_full

    def free(self, table: BlockTable, num_useful: int | None = None) -> None:
        """Give all blocks back, the last first, so that a prefix outlives what followed it.

        Args:
            num_useful: tokens that somebody may ask for again; blocks that hold none of them are
                not kept for a hit. None: all.
        """
        if num_useful is not None:
            for block in table.blocks[self.blocks_for(num_useful) :]:
                if block.ref_count == 1:
                    self.pool.forget(block)
        for block in reversed(table.blocks):
            self.pool.release(block)
        table.blocks = []
        table.num_committed = 0

    def discard(self, table: BlockTable) -> None:
        """Give all blocks back and let nobody find them: their content is not to be trusted."""
        for block in table.blocks:
            self.pool.forget(block)
        self.free(table)

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Prove that free + cached + used blocks are all blocks, and each owned as it says.

        Args:
            tables: every table that holds blocks.

        Raises:
            RuntimeError: the books are wrong; the message says where.
        """
        owners: Counter[int] = Counter()
        for table in tables:
            ids = table.block_ids
            _require(len(set(ids)) == len(ids), "a table holds a block twice: {}", ids)
            owners.update(ids)
        unused = self.pool.unused()
        unused_ids = {block.block_id for block in unused}
        _require(len(unused_ids) == len(unused), "a block is in the free list twice")
        _require(0 not in owners and 0 not in unused_ids, "the dummy block was handed out")
        for block in self.pool.blocks[1:]:
            count = owners[block.block_id]
            _require(block.ref_count == count, "{} is held by {} tables", block, count)
            _require((block.block_id in unused_ids) == (count == 0), "{} is lost", block)
        _require(len(unused) + len(owners) == self.pool.num_usable, "free + cached + used != all")
        _require(len(unused) == self.pool.num_unused, "the free list is miscounted")
        cached = [block for block in unused if block.digest is not None]
        _require(len(cached) == self.pool.num_unused_cached, "the cached blocks are miscounted")
        for digest, block in self.pool.cached():
            _require(block.digest == digest, "{} is found under a digest not its own", block)

    def _cached_prefix(self, table: BlockTable, token_ids: Sequence[int]) -> list[Block]:
        if not (self.enable_prefix_caching and table.takes_hits):
            return []
        # At least one token must be computed: its logits are what a request asks for.
        most = (len(token_ids) - 1) // self.block_size
        hits: list[Block] = []
        while len(hits) < most:
            if len(hits) == len(table.digests):
                self._extend_digests(table, token_ids, min(most, len(hits) + _STRIDE))
            block = self.pool.find(table.digests[len(hits)])
            if block is None:
                break
            hits.append(block)
        return hits

    def _extend_digests(self, table: BlockTable, token_ids: Sequence[int], num_full: int) -> None:
        parent = table.digests[-1] if table.digests else root_digest(table.salt)
        size, begin = self.block_size, len(table.digests)
        packed = array("q", token_ids[begin * size : num_full * size]).tobytes()
        width = size * 8
        for start in range(0, len(packed), width):
            parent = hashlib.sha256(parent + packed[start : start + width]).digest()
            table.digests.append(parent)


def root_digest(salt: bytes) -> bytes:
    """The parent of a first block: two salts never meet in one chain."""
    return hashlib.sha256(b"deeprequest" + salt).digest()


def _require(holds: bool, message: str, *about: object) -> None:
    if not holds:
        raise RuntimeError(f"KV cache bookkeeping is broken: {message.format(*about)}")
