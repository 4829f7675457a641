"""Settings come from the file, the environment and the command line, and mistakes are named."""

from pathlib import Path

import pytest

from serve_app.config import ConfigError, ServeConfig, state_dir

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = "model: {path: model}\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_the_quick_start_configuration_loads() -> None:
    config = ServeConfig.load(ROOT / "configs/quickstart.yaml")
    assert config.model.id == "deepseek-r1-32b"
    assert config.engine_config().tensor_parallel_size == 2
    assert Path(config.model.path) == ROOT / "configs/models/deeprequest-demo"


def test_the_environment_wins_over_the_file_and_options_over_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, MINIMAL + "http: {port: 1111, host: 127.0.0.2}\n")
    monkeypatch.setenv("DEEPREQUEST_PORT", "2222")
    monkeypatch.setenv("DEEPREQUEST_ENGINE__MAX_NUM_SEQS", "8")
    monkeypatch.setenv("DEEPREQUEST_STATE_DIR", str(tmp_path / "from-environment"))
    config = ServeConfig.load(path)
    assert (config.http.host, config.http.port) == ("127.0.0.2", 2222)
    assert config.engine_config().max_num_seqs == 8
    assert config.state_dir == tmp_path / "from-environment"
    assert ServeConfig.load(path, port=3333).http.port == 3333
    assert ServeConfig.load(path, state_dir=tmp_path / "s").state_dir == tmp_path / "s"


def test_a_resolved_configuration_travels_without_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ServeConfig.load(written(tmp_path, MINIMAL), port=3333)
    monkeypatch.setenv("DEEPREQUEST_HTTP__PORT", "4444")
    assert ServeConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: {path: m}\nhtpp: {}\n", "htpp"),
        ("model: {path: m}\nhttp: {port: 99999999}\n", "http.port"),
        ("model: {path: m}\nengine: {max_num_seq: 3}\n", "max_num_seq"),
        ("model: {path: m}\nengine: {tensor_parallel_size: 0}\n", "tensor_parallel_size"),
        ("model: {}\n", "model.path"),
        ("- a\n", "mapping"),
        ("a: [\n", "YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ServeConfig.load(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        ServeConfig.load(tmp_path / "none.yaml")


def test_the_state_directory_defaults_to_the_working_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DEEPREQUEST_STATE_DIR", raising=False)
    assert state_dir() == Path.cwd() / ".deeprequest"
