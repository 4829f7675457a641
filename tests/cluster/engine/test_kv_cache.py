"""The books of the KV cache: the pool against a plain dict, the prefix cache by example."""

import hashlib
import struct
from collections import OrderedDict

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from cluster.engine.kv_cache import Block, BlockPool, BlockTable, KVCacheManager, root_digest


def cache(num_blocks: int = 9, block_size: int = 4, caching: bool = True) -> KVCacheManager:
    return KVCacheManager(num_blocks, block_size, caching)


def computed(kv: KVCacheManager, token_ids: list[int], salt: bytes = b"") -> BlockTable:
    """A table whose tokens were all computed."""
    table = BlockTable(salt)
    assert kv.can_admit(table, token_ids)
    kv.admit(table, token_ids)
    kv.commit(table, token_ids, len(token_ids))
    return table


def test_block_0_is_never_handed_out() -> None:
    pool = BlockPool(4)
    assert sorted(pool.take().block_id for _ in range(3)) == [1, 2, 3]
    with pytest.raises(IndexError):
        pool.take()


def test_a_pool_of_the_dummy_block_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="num_kv_blocks must be at least 2"):
        BlockPool(1)


MOVES = ("take", "publish", "release", "share")


@settings(deadline=None, max_examples=150)
@given(
    st.integers(2, 8),
    st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 99))),
)
def test_the_pool_behaves_like_an_ordered_dict(
    num_blocks: int, moves: list[tuple[str, int]]
) -> None:
    pool = BlockPool(num_blocks)
    unused: OrderedDict[int, bytes | None] = OrderedDict((i, None) for i in range(1, num_blocks))
    used: list[Block] = []
    for number, (move, choice) in enumerate(moves):
        if move == "take" and unused:
            block = pool.take()
            assert (block.block_id, block.ref_count) == (unused.popitem(last=False)[0], 1)
            used.append(block)
        elif move == "publish" and used:
            block = used[choice % len(used)]
            if block.digest is None:
                pool.publish(block, bytes([number % 256]) * 32)
        elif move == "release" and used:
            block = used.pop(choice % len(used))
            pool.release(block)
            if block.ref_count == 0:
                unused[block.block_id] = block.digest
                unused.move_to_end(block.block_id, last=block.digest is not None)
        elif move == "share" and pool.cached():
            found = pool.find(pool.cached()[choice % len(pool.cached())][0])
            assert found is not None
            pool.share(found)
            unused.pop(found.block_id, None)
            used.append(found)
        assert [block.block_id for block in pool.unused()] == list(unused)
        assert pool.num_unused == len(unused)
        assert pool.num_unused_cached == sum(digest is not None for digest in unused.values())


def test_digests_chain_from_the_salted_root() -> None:
    kv = cache(block_size=2)
    table = computed(kv, [1, 2, 3, 4, 5], salt=b"tenant")
    root = hashlib.sha256(b"deeprequesttenant").digest()
    first = hashlib.sha256(root + struct.pack("<2q", 1, 2)).digest()
    assert root_digest(b"tenant") == root
    assert table.digests == [first, hashlib.sha256(first + struct.pack("<2q", 3, 4)).digest()]


def test_a_second_prompt_shares_the_full_blocks_of_the_first() -> None:
    kv = cache()
    first = computed(kv, [1] * 10)
    second = BlockTable()
    assert kv.num_cached_tokens(second, [1] * 9 + [2]) == 8
    assert kv.admit(second, [1] * 9 + [2]) == 8
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.block_ids[2] != first.block_ids[2]
    kv.check_integrity([first, second])


def test_a_prompt_is_never_served_whole_from_the_cache() -> None:
    kv = cache()
    computed(kv, [1] * 8)
    assert kv.num_cached_tokens(BlockTable(), [1] * 8) == 4
    assert kv.num_cached_tokens(BlockTable(), [1] * 9) == 8


def test_blocks_are_found_only_after_they_were_computed() -> None:
    kv = cache()
    table = BlockTable()
    kv.admit(table, [1] * 9)
    assert kv.num_cached_tokens(BlockTable(), [1] * 9) == 0
    kv.commit(table, [1] * 9, num_computed=7)
    assert kv.num_cached_tokens(BlockTable(), [1] * 9) == 4


def test_tenants_with_different_salts_share_nothing() -> None:
    kv = cache()
    computed(kv, [1] * 9, salt=b"a")
    assert kv.num_cached_tokens(BlockTable(b"b"), [1] * 9) == 0
    assert kv.num_cached_tokens(BlockTable(b"a"), [1] * 9) == 8


def test_the_same_block_after_another_prefix_is_not_found() -> None:
    kv = cache()
    computed(kv, [1] * 4 + [2] * 5)
    assert kv.num_cached_tokens(BlockTable(), [2] * 9) == 0
    assert kv.num_cached_tokens(BlockTable(), [3] * 4 + [2] * 5) == 0


def test_without_prefix_caching_nothing_is_found_or_hashed() -> None:
    kv = cache(caching=False)
    table = computed(kv, [1] * 9)
    assert kv.num_cached_tokens(BlockTable(), [1] * 9) == 0
    assert table.digests == []
    kv.free(table)
    assert kv.pool.num_unused_cached == 0


def test_freed_blocks_stay_found_until_they_are_taken() -> None:
    kv = cache(num_blocks=5)
    kv.free(computed(kv, [1] * 9))
    assert (kv.pool.num_unused, kv.pool.num_unused_cached) == (4, 2)
    table = BlockTable()
    assert kv.admit(table, [1] * 9) == 8
    kv.check_integrity([table])


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    kv = cache(num_blocks=4)
    kv.free(computed(kv, [1] * 12))
    computed(kv, [2] * 3)
    assert kv.num_cached_tokens(BlockTable(), [1] * 13) == 8


def test_blocks_without_content_are_taken_before_cached_ones() -> None:
    kv = cache(num_blocks=5)
    kv.free(computed(kv, [1] * 8))
    kv.free(computed(kv, [2] * 5))  # its second block is not full
    table = BlockTable()
    kv.admit(table, [3])
    assert kv.pool.num_unused_cached == 3


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    kv = cache(num_blocks=4)
    for token_id in (1, 2, 3):
        kv.free(computed(kv, [token_id] * 4))
    kv.free(computed(kv, [1] * 4))  # computed again into the oldest block, now the newest
    computed(kv, [4])
    found = [kv.num_cached_tokens(BlockTable(), [token_id] * 5) for token_id in (1, 2, 3)]
    assert found == [4, 0, 4]


def test_two_requests_that_computed_the_same_keep_one_block_found() -> None:
    kv = cache()
    first, second = BlockTable(), BlockTable()
    kv.admit(first, [1] * 5)
    kv.admit(second, [1] * 5)
    kv.commit(first, [1] * 5, 5)
    kv.commit(second, [1] * 5, 5)
    assert kv.pool.find(first.digests[0]) is first.blocks[0]
    assert second.blocks[0].digest is None
    kv.check_integrity([first, second])
    kv.free(first)
    kv.free(second)
    assert kv.pool.num_unused_cached == 1


def test_unused_hits_count_against_the_room_but_shared_ones_do_not() -> None:
    kv = cache(num_blocks=4)
    table = computed(kv, [1] * 9)
    assert kv.can_admit(BlockTable(), [1] * 8) is False  # needs one new block, none is left
    kv.free(table)
    assert kv.can_admit(BlockTable(), [1] * 12)
    assert not kv.can_admit(BlockTable(), [1] * 12, reserve=1)
    assert not kv.can_admit(BlockTable(), [1] * 13)


def test_growing_takes_blocks_only_at_block_borders() -> None:
    kv = cache(num_blocks=3)
    table = computed(kv, [1] * 3)
    assert kv.grow(table, 4)
    assert len(table.blocks) == 1
    assert kv.grow(table, 5)
    assert len(table.blocks) == 2
    assert not kv.grow(table, 9)
    assert len(table.blocks) == 2
    kv.check_integrity([table])


def test_discarded_blocks_are_never_found_again() -> None:
    kv = cache()
    first = computed(kv, [1] * 9)
    second = computed(kv, [1] * 9)
    kv.discard(second)
    assert kv.num_cached_tokens(BlockTable(), [1] * 9) == 0
    kv.check_integrity([first])
    kv.free(first)
    assert kv.pool.num_unused_cached == 0
    kv.check_integrity([])


def test_a_block_owned_twice_is_seen() -> None:
    kv = cache()
    first, second = computed(kv, [1] * 3), computed(kv, [2] * 3)
    kv.check_integrity([first, second])
    second.blocks = first.blocks
    with pytest.raises(RuntimeError, match="held by 2 tables"):
        kv.check_integrity([first, second])


def test_a_lost_block_is_seen() -> None:
    kv = cache()
    table = computed(kv, [1] * 3)
    with pytest.raises(RuntimeError, match="held by 0 tables"):
        kv.check_integrity([])
    table.blocks[0].ref_count = 0
    with pytest.raises(RuntimeError, match="is lost"):
        kv.check_integrity([])


def test_a_block_twice_in_one_table_is_seen() -> None:
    kv = cache()
    table = computed(kv, [1] * 3)
    table.blocks *= 2
    with pytest.raises(RuntimeError, match="holds a block twice"):
        kv.check_integrity([table])
