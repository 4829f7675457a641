"""The comparison's figures."""

import pytest

from tests.bench.peer_table import medians, ratio

KINDS = {
    "deeprequest": False,
    "deeprequest int8": True,
    "one": False,
    "two": False,
    "two int8": True,
}


def run(decode: float, wait: float) -> list[dict[str, object]]:
    return [
        {"kind": "decode", "batch": 8, "tokens_per_s": decode},
        {"kind": "ttft", "prompt_len": 128, "ms": wait},
    ]


def test_medians_are_over_the_rounds_that_brought_a_figure() -> None:
    found = medians({"deeprequest": [run(1.0, 5.0), [], run(3.0, 7.0), run(2.0, 9.0)]})
    assert found == {"deeprequest": {"decode 8": 2.0, "ttft 128": 7.0}}


def test_ours_is_held_against_the_best_peer_of_its_kind() -> None:
    found = medians(
        {
            "deeprequest": [run(120.0, 50.0)],
            "deeprequest int8": [run(300.0, 20.0)],
            "one": [run(80.0, 100.0)],
            "two": [run(100.0, 200.0)],
            "two int8": [run(200.0, 30.0)],
        }
    )
    assert ratio(found, KINDS, "deeprequest", "decode 8") == pytest.approx(1.2)
    assert ratio(found, KINDS, "deeprequest", "ttft 128") == pytest.approx(2.0)  # less is more
    assert ratio(found, KINDS, "deeprequest int8", "decode 8") == pytest.approx(1.5)
    assert ratio(found, KINDS, "one", "decode 8") is None
