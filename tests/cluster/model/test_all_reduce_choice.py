import pytest

from cluster.model.all_reduce_choice import BUFFER_BYTES, KIB, MIB, TABLE, Algorithm, choose

EDGES: list[tuple[int, bool, int, Algorithm]] = [
    (2, False, 512 * KIB, "one_shot"),
    (2, True, 512 * KIB + 16, "two_shot"),
    (4, False, 512 * KIB, "one_shot"),
    (4, True, 256 * KIB + 16, "multimem"),
    (8, False, 256 * KIB, "one_shot"),
    (8, False, 256 * KIB + 16, "two_shot"),
    (8, True, 64 * KIB, "one_shot"),
    (8, True, 64 * KIB + 16, "multimem"),
    (8, True, BUFFER_BYTES, "multimem"),
    (8, True, BUFFER_BYTES + 16, "library"),
]


@pytest.mark.parametrize(("ranks", "multicast", "num_bytes", "algorithm"), EDGES)
def test_the_table_has_these_edges(
    ranks: int, multicast: bool, num_bytes: int, algorithm: Algorithm
) -> None:
    assert choose(ranks, num_bytes, multicast, ordered=False) == algorithm


@pytest.mark.parametrize("ranks", TABLE)
@pytest.mark.parametrize("multicast", [False, True])
def test_where_bits_count_size_does_not(ranks: int, multicast: bool) -> None:
    sizes = (16, 10 * KIB, 512 * KIB + 16, 80 * MIB)
    assert {choose(ranks, size, multicast, ordered=True) for size in sizes} == {"ordered"}


@pytest.mark.parametrize(("ranks", "num_bytes"), [(3, 1024), (16, 1024), (4, 1026), (8, 8)])
def test_what_the_kernels_cannot_take_is_left_to_the_library(ranks: int, num_bytes: int) -> None:
    assert choose(ranks, num_bytes, multicast=True, ordered=False) == "library"


@pytest.mark.parametrize("ranks", TABLE)
def test_a_token_of_the_32b_takes_one_shot(ranks: int) -> None:
    assert choose(ranks, 5120 * 2, multicast=True, ordered=False) == "one_shot"
