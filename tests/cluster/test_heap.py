"""Freed memory stays in the process: counted in page faults, in a process of its own."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
import torch
from cluster.heap import keep_freed_memory

PR_SET_THP_DISABLE = 41  # a huge page is one fault, and not always to be had
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
if sys.argv[1] == "kept":
    assert keep_freed_memory()

def step():
    a, b, c = (torch.ones(40 << 20, dtype=torch.uint8) for _ in range(3))
    return a + b + c

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(8)))  # some pages the system may take back by itself
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_steps_after_the_first_fault_no_pages_in() -> None:
    assert faults("kept") < 100 < faults("as it is")


def faults(word: str) -> int:
    """Of the calmest of eight steps; their pieces are larger than glibc keeps by itself."""
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, word], capture_output=True, check=True, timeout=120
    )
    return int(ran.stdout)
