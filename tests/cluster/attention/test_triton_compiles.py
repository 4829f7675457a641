import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels are compiled by triton")

SHARED_MEMORY = {"80": 163 * 1024, "90": 227 * 1024}
"""Bytes one program can have."""


def test_every_launch_of_the_32b_compiles_for_ampere_and_hopper(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.attention.compile_triton"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    names = ["rotary_store_kernel", "split_kernel", "combine_kernel"]
    drafts = ["split_kernel", "combine_kernel"]
    expected = [*names, *drafts, "prefill_kernel"]
    with_fp8_cache = ["80", "90", "90"]
    assert [(arch, name) for arch, name, _ in lines] == [
        (arch, name) for arch in with_fp8_cache for name in expected
    ]
    for arch, name, shared in lines:
        # two decode programs share a multiprocessor
        room = SHARED_MEMORY[arch] // (2 if name == "split_kernel" and arch == "90" else 1)
        assert int(shared) <= room, (arch, name)
