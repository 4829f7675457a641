from cluster.worker.graphs.sizes import graph_sizes


def test_the_usual_sizes_are_about_twenty_and_end_at_the_most_rows() -> None:
    assert graph_sizes(None, 256) == [
        *(1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64),
        *(80, 96, 112, 128, 160, 192, 224, 256),
    ]
    assert graph_sizes(None, 1) == [1]
    assert graph_sizes(None, 6) == [1, 2, 4, 6]
    assert graph_sizes(None, 512)[-5:] == [256, 320, 384, 448, 512]


def test_padding_stays_below_a_half_everywhere_and_a_quarter_of_large_steps() -> None:
    sizes = graph_sizes(None, 512)
    for rows in range(1, 513):
        padded = next(size for size in sizes if size >= rows)
        assert padded <= 2 * rows
        assert rows < 24 or padded <= 1.34 * rows


def test_asked_sizes_are_taken_once_each_in_order() -> None:
    assert graph_sizes((8, 1, 8), 64) == [1, 8]
