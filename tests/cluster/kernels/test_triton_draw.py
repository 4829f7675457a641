"""The draw of GPUs, interpreted, against the one in numpy."""

from tests.cluster import triton_interpreter  # isort: skip

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cluster.kernels.triton_draw import draw_offered
from cluster.worker.candidates import Filters, Offer
from cluster.worker.candidates import draw_offered as draw_on_host
from cluster.worker.noise import MAX_VOCAB, row_keys

assert triton_interpreter
ROWS = 8


def filters_of(chosen: np.random.Generator, width: int) -> Filters:
    limited = chosen.random(ROWS) < 0.5
    return Filters.of(
        chosen.choice(np.array([0.3, 0.9, 0.95, 1.0], np.float32), ROWS),
        chosen.choice(np.array([0.0, 0.05, 0.4], np.float32), ROWS),
        np.where(limited, chosen.integers(1, 2 * width, ROWS), 0),
        row_keys(chosen.integers(-(2**63), 2**63 - 1, ROWS), chosen.integers(0, 10**6, ROWS)),
    )


def on_device(filters: Filters) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    keys = filters.keys.view(np.int64)
    top_p, min_p_log, top_k = (np.ascontiguousarray(part[:, 0]) for part in filters[:3])
    parts = (top_p, min_p_log, top_k, np.ascontiguousarray(keys[:, 0]))
    first, second, third, fourth = (torch.from_numpy(part) for part in parts)
    return first, second, third, fourth


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, 40, 64]), st.booleans())
def test_the_same_ids_are_drawn_as_on_the_host(seed: int, width: int, whole: bool) -> None:
    chosen = np.random.default_rng(seed)
    values = -np.sort(-chosen.normal(0, 3, (ROWS, width)).round(1).astype(np.float32))
    ids = np.argsort(chosen.random((ROWS, 200)), axis=-1)[:, :width] * 760
    floor = np.full((ROWS, 1), -math.inf, np.float32) if whole else values[:, -1:]
    hidden = 0.0 if whole else 0.2
    lse = np.log(np.exp(values).sum(-1, keepdims=True) * (1 + hidden)).astype(np.float32)
    filters = filters_of(chosen, width)
    want, want_covered = draw_on_host(Offer(values, ids, floor), lse, filters, narrow=width + 1)
    tokens, covered = draw_offered(
        (torch.from_numpy(values), torch.from_numpy(ids), torch.from_numpy(floor[:, 0])),
        torch.from_numpy(lse[:, 0]),
        on_device(filters),
        MAX_VOCAB,
    )
    assert covered.tolist() == want_covered.tolist()
    assert tokens[covered].tolist() == want[want_covered].tolist()


def test_no_rows_are_drawn_from_nothing() -> None:
    empty = torch.empty(0)
    tokens, covered = draw_offered(
        (torch.empty(0, 64), torch.empty(0, 64, dtype=torch.int64), empty),
        empty,
        (empty, empty, empty.long(), empty.long()),
        MAX_VOCAB,
    )
    assert (len(tokens), len(covered)) == (0, 0)


def test_the_noise_is_that_of_the_host() -> None:
    """Of equal values the noise alone decides: a thousand seeds agree."""
    rows, width = 1000, 32
    keys = row_keys(np.arange(rows) - 500, np.arange(rows))
    ids = np.broadcast_to(np.arange(width) * 4751, (rows, width)).copy()
    filters = Filters.of(
        np.ones(rows, np.float32), np.zeros(rows, np.float32), np.zeros(rows, np.int64), keys
    )
    values = np.zeros((rows, width), np.float32)
    floor = np.full((rows, 1), -math.inf, np.float32)
    lse = np.full((rows, 1), math.log(width), np.float32)
    want, _ = draw_on_host(Offer(values, ids, floor), lse, filters, narrow=64)
    tokens, _ = draw_offered(
        (torch.from_numpy(values), torch.from_numpy(ids), torch.from_numpy(floor[:, 0])),
        torch.from_numpy(lse[:, 0]),
        on_device(filters),
        MAX_VOCAB,
    )
    assert tokens.tolist() == want.tolist()
    assert len(set(want.tolist())) == width
