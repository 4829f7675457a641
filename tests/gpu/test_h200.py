import json
from pathlib import Path

import pytest

from tests.gpu import h200


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

    def hang(bench: object) -> dict[str, object]:
        while True:
            pass

    monkeypatch.setattr(stage_ceilings, "run", hang)
    monkeypatch.setattr(stage_decode, "run", lambda bench: {"reached": True})
    asked = ["--stages", "ceilings,decode", "--limit-s", "0.3", "--device", "cpu", "--tiny"]
    assert h200.main(["--out", str(tmp_path), *asked]) == 1
    told = json.loads((tmp_path / "all.json").read_text())
    assert "more than 0.3 s" in told["ceilings"]["error"]
    assert told["decode"]["reached"]
