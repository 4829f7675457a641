"""What cannot work is refused before anything starts, naming the setting or the file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import ConfigError, ServeConfig
from serve_app.preflight import check
from serve_app.sections import AdmissionSection, ModelSection

DEMO = Path(__file__).resolve().parents[2] / "configs/models/deeprequest-demo"
LONGEST: int = json.loads((DEMO / "config.json").read_text())["max_position_embeddings"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The demo model's small files, and weights that nobody opens here."""
    for file in DEMO.glob("*.json"):
        shutil.copy(file, tmp_path)
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def config(folder: Path, **engine: Any) -> ServeConfig:
    return ServeConfig(model=ModelSection(path=str(folder)), engine=engine)


def refused(folder: Path, **engine: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check(config(folder, **engine))
    return str(caught.value)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_demo_model_passes_in_every_division(ranks: int) -> None:
    check(config(DEMO, tensor_parallel_size=ranks, max_model_len=LONGEST))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    told = refused(tmp_path / "none")
    assert told.startswith(f"model.path {tmp_path}/none: ")
    assert "config.json" in told


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "llama"}', "[]"])
def test_a_folder_that_is_no_checkpoint_of_ours_is_named(checkpoint: Path, content: str) -> None:
    (checkpoint / "config.json").write_text(content)
    assert str(checkpoint / "config.json") in refused(checkpoint)


def test_ranks_that_do_not_divide_the_model_are_told_which_would(checkpoint: Path) -> None:
    told = refused(checkpoint, tensor_parallel_size=3)
    assert "tensor_parallel_size 3 does not divide" in told
    assert "1, 2, 4" in told


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_tokenizer_that_is_missing_or_broken_is_named(
    checkpoint: Path, content: str | None
) -> None:
    path = checkpoint / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert str(path) in refused(checkpoint)


def test_a_checkpoint_that_speaks_another_dialect_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"chat_template": "{{ messages[0].content }}"}))
    assert "template" in refused(checkpoint)


def test_missing_weights_are_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    assert "holds no *.safetensors file" in refused(checkpoint)


def test_a_context_longer_than_the_models_is_refused(checkpoint: Path) -> None:
    told = refused(checkpoint, max_model_len=LONGEST + 1)
    assert f"engine.max_model_len {LONGEST + 1}" in told
    assert f"the {LONGEST} tokens" in told


def test_a_redis_url_that_cannot_be_one_is_named() -> None:
    section = AdmissionSection(redis_url="redis+sentinel://a")
    wrong = config(DEMO).model_copy(update={"admission": section})
    with pytest.raises(ConfigError, match=r"admission\.redis_url .*name of the master"):
        check(wrong)
