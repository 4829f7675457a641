"""Instructions that this CPU would not choose: they pass the same tests, to the same bits."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cluster.kernels import native

ROOT = Path(__file__).parents[3]
OLDER = {"DEEPREQUEST_CPU_INSTRUCTIONS": "avx2"}

extension, about = native.load()
if extension is None:
    pytest.skip(f"the compiled kernels are {about}", allow_module_level=True)


def widened_digest() -> str:
    """Of products and attention in float32 arithmetic, which every CPU computes alike."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(70, 330, generator=generator).to(torch.bfloat16)
    last = len(extension.linear_variants()) - 1
    digest = hashlib.sha256()
    for rows in (1, 2, 5, 12, 40):
        x = torch.randn(rows, 330, generator=generator).to(torch.bfloat16)
        packed = extension.pack_linear(weight)
        product = extension.linear(x, packed, 70, None, torch.float32, last)
        normed = extension.rms_norm(x, x[0].contiguous(), 1e-6)
        opened = extension.silu_and_mul(x)
        for result in (product, normed.float(), opened.float(), extension.row_logsumexp(x, 330)):
            digest.update(result.numpy().tobytes())
    return digest.hexdigest()


def elsewhere(*command: str) -> str:
    """What a process of this environment prints that may use AVX2 alone."""
    environment = {**os.environ, **OLDER, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_avx2_gives_the_bits_of_whatever_serves_here() -> None:
    script = "import tests.cluster.kernels.test_instructions as here; print(here.widened_digest())"
    assert elsewhere("-c", script) == widened_digest()


@pytest.mark.skipif(
    len(extension.linear_variants()) == 1 or OLDER.items() <= os.environ.items(),
    reason="AVX2 is what the other tests ran on",
)
def test_avx2_passes_the_tests_of_the_kernels() -> None:
    elsewhere("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cluster/kernels")
