import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cluster.device import Device
from tests.gpu import h200
from tests.gpu.bench import Bench

NOBODY = 2**22 + 1


def test_every_stage_runs_on_any_machine(tmp_path: Path) -> None:
    assert h200.main(["--out", str(tmp_path), "--device", "cpu", "--tiny"]) == 0
    told = json.loads((tmp_path / "all.json").read_text())
    assert set(h200.STAGES) <= set(told)
    assert all(told[stage]["ok"] for stage in h200.STAGES)
    assert told["decode"]["batches"]["1"]["tokens_per_s"] > 0
    assert told["numerics"]["relative_errors"]["logits"] < 0.03


def test_a_stage_that_fails_or_hangs_is_a_result_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.gpu import stage_ceilings, stage_decode

    def hang(bench: Bench, told: dict[str, object]) -> None:
        told["half"] = 1
        while True:
            pass

    monkeypatch.setattr(stage_ceilings, "run", hang)
    monkeypatch.setattr(stage_decode, "run", lambda bench, told: told.update(reached=True))
    asked = ["--stages", "ceilings,decode", "--limit-s", "2", "--device", "cpu", "--tiny"]
    assert h200.main(["--out", str(tmp_path), *asked]) == 1
    told = json.loads((tmp_path / "all.json").read_text())
    assert "more than 2 s" in told["ceilings"]["error"]
    assert told["ceilings"]["half"] == 1
    assert told["decode"]["reached"]


def test_a_stage_in_a_process_of_its_own_leaves_what_it_told_before_it_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is told, not there: it writes as a stage does, and ends as a crash does."""

    def start(command: list[str], start_new_session: bool) -> object:
        assert start_new_session
        assert command[command.index("--stages") + 1] == "decode"
        half = {"ok": False, "error": "unfinished", "batches": {"1": {"tokens_per_s": 60}}}
        (tmp_path / "decode.json").write_text(json.dumps(half))
        return SimpleNamespace(pid=NOBODY, wait=lambda *seconds: -11)

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(os, "killpg", lambda pid, number: None)
    monkeypatch.setattr(Device, "is_cuda", True)
    monkeypatch.setattr(Device, "name", "a GPU")
    monkeypatch.setattr(Device, "total_memory", lambda device: 80 << 30)
    monkeypatch.setattr(Device, "select", lambda wanted, rank: Device(torch.device("cpu")))
    assert h200.main(["--out", str(tmp_path), "--stages", "decode"]) == 1
    told = json.loads((tmp_path / "all.json").read_text())["decode"]
    assert "its process ended with -11" in told["error"]
    assert told["batches"]["1"]["tokens_per_s"] == 60


def test_stages_that_no_time_is_left_for_are_not_begun(tmp_path: Path) -> None:
    asked = ["--stages", "decode", "--total-s", "30", "--device", "cpu", "--tiny"]
    assert h200.main(["--out", str(tmp_path), *asked]) == 1
    told = json.loads((tmp_path / "decode.json").read_text())
    assert "out of time" in told["error"]


def test_a_gpu_of_80_gb_is_given_weights_in_e4m3_where_room_is_wanted(tmp_path: Path) -> None:
    class Small(Device):
        def total_memory(self) -> int:
            return 80 << 30

    class Large(Device):
        def total_memory(self) -> int:
            return 141 << 30

    for kind, quantization in ((Small, "fp8"), (Large, "none")):
        bench = Bench(kind(torch.device("cpu")), False, tmp_path)
        assert bench.quantization == quantization
