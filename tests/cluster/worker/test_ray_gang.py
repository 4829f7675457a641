"""Ranks as Ray actors, in a placement group of a private Ray."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cluster.engine.fake_rank import FIRST_TOKEN

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "configs" / "models" / "deeprequest-demo"


@pytest.mark.e2e
def test_a_replica_and_its_ranks_live_and_die_together_on_ray() -> None:
    directory = tempfile.mkdtemp(prefix="dr-")
    environment = {
        **os.environ,
        "HOME": directory,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    scene = [sys.executable, "-m", "tests.cluster.worker.ray_scene", str(MODEL), directory]
    try:
        done = subprocess.run(
            scene, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=150
        )
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    # Ray gives out a node's GPUs in any order; what counts is that every rank sees the same one.
    assert seen["gpus"] in (["0,1", "0,1"], ["1,0", "1,0"])
    assert seen["start"] == "ready"
    assert seen["tokens"] == [FIRST_TOKEN + n for n in range(3, 23)]
    assert "rank 1 is gone" in seen["lost"]["reason"]
    assert seen["lost"]["error"] == "engine_dead"
    assert seen["gone after a kill"]
    assert seen["failed start"] == "rank 1: FileNotFoundError: no such checkpoint"
    assert seen["second start"] == "ready"
    assert seen["gone with the replica"]
