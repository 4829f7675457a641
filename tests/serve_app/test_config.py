"""Settings come from the file, the environment and the command line, and mistakes are named."""

import os
from decimal import Decimal
from pathlib import Path

import pytest

from serve_app.config import ConfigError, ServeConfig, service_state, state_dir

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = "model: {path: model}\n"


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DEEPREQUEST_")]:
        monkeypatch.delenv(name)


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
    priced = "model: {path: m, price: {input: 0.55, output: 2.000001}}\n"
    config = ServeConfig.load(written(tmp_path, priced), port=3333)
    assert config.model.price is not None
    assert config.model.price.output == Decimal("2.000001")
    monkeypatch.setenv("DEEPREQUEST_HTTP__PORT", "4444")
    assert ServeConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("model: {path: m}\nhtpp: {}\n", "htpp"),
        ("model: {path: m}\nhttp: {port: 99999999}\n", "http.port"),
        ("model: {path: m}\nledger: {url: mysql://h/d}\n", "ledger.url"),
        ("model: {path: m, price: {input: 1, output: 0.0000001}}\n", "model.price.output"),
        (
            "model: {path: m, price: {input: 1, cached_input: 2, output: 3}}\n",
            "model.price.cached_input",
        ),
        ("model: {path: m}\nengine: {max_num_seq: 3}\n", "max_num_seq"),
        ("model: {path: m}\nengine: {tensor_parallel_size: 0}\n", "tensor_parallel_size"),
        ("model: {path: m}\nadmission: {classes: {gold: {}}}\n", "admission.classes.gold"),
        ("model: {path: m}\nadmission: {classes: {batch: {ceiling: 2}}}\n", "batch.ceiling"),
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


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("max_num_seqs: many", "engine.max_num_seqs: expected int, got str"),
        ("device: gpu", "engine.device: invalid enum value 'gpu'"),
        ("max_num_seq: 3", "engine: object contains unknown field max_num_seq"),
        ("max_num_seqs: 0", "engine: max_num_seqs must be at least 1, not 0"),
        ("model_path: m", "engine.model_path is set by model.path"),
    ],
)
def test_a_mistake_in_the_engine_is_told_once(tmp_path: Path, engine: str, told: str) -> None:
    path = written(tmp_path, f"{MINIMAL}engine: {{{engine}}}\n")
    with pytest.raises(ConfigError) as caught:
        ServeConfig.load(path)
    assert str(caught.value) == f"{path}: {told}"


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("DEEPREQUEST_PORT", "abc", "^DEEPREQUEST_PORT: "),
        ("DEEPREQUEST_PORT", "0", "^DEEPREQUEST_PORT: "),
        ("DEEPREQUEST_HTTP", "{", 'DEEPREQUEST_.* field "http"'),
    ],
)
def test_a_bad_variable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: str
) -> None:
    path = written(tmp_path, MINIMAL)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=named):
        ServeConfig.load(path)


def test_an_empty_variable_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, MINIMAL + "http: {port: 1111}\n")
    for name in ("PORT", "STATE_DIR", "REDIS_URL", "HTTP__PORT", "ENGINE__MAX_NUM_SEQS"):
        monkeypatch.setenv(f"DEEPREQUEST_{name}", "")
    config = ServeConfig.load(path)
    assert config.http.port == 1111
    assert config.admission.redis_url is None
    assert state_dir() == config.state_dir == Path.cwd() / ".deeprequest"


def test_the_state_directory_of_the_file_is_used_unless_another_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, f"{MINIMAL}state_dir: {tmp_path}/of-file\n")
    assert ServeConfig.load(path).state_dir == tmp_path / "of-file"
    monkeypatch.setenv("DEEPREQUEST_STATE_DIR", str(tmp_path / "of-environment"))
    assert ServeConfig.load(path).state_dir == tmp_path / "of-environment"


def test_tenants_and_pepper_files_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    text = "admission: {pepper_file: secret/pepper, tenants_file: /keys/tenants.yaml, pool: blue}\n"
    state = service_state(written(tmp_path, MINIMAL + text))
    assert state.pepper_path == tmp_path / "secret/pepper"
    assert state.tenants_path == Path("/keys/tenants.yaml")
    assert state.admission.pool == "blue"


def test_without_a_file_the_state_directory_holds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPREQUEST_REDIS_URL", "redis://127.0.0.1:1")
    state = service_state(option=tmp_path)
    assert state.pepper_path == tmp_path / "pepper"
    assert state.tenants_path == tmp_path / "tenants.yaml"
    assert state.admission.redis_url == "redis://127.0.0.1:1"
    assert state.admission.pool == "main"


def test_the_state_directory_defaults_to_the_working_directory() -> None:
    assert state_dir() == Path.cwd() / ".deeprequest"


def test_what_is_said_of_one_class_leaves_the_others_and_its_own_rest_alone(tmp_path: Path) -> None:
    text = MINIMAL + "admission: {classes: {batch: {ceiling: 0.5}}}\n"
    classes = ServeConfig.load(written(tmp_path, text)).admission.classes
    assert (classes.batch.ceiling, classes.batch.promotion_s) == (0.5, 120)
    assert classes.interactive.reserved_share == 0.1


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        ("{system: {reserved_share: 0.9}}", "add up to 1"),
        ("{default: {ceiling: 0.7}}", "above a higher class's"),
    ],
)
def test_classes_that_contradict_each_other_are_refused(
    tmp_path: Path, classes: str, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        ServeConfig.load(written(tmp_path, f"{MINIMAL}admission: {{classes: {classes}}}\n"))


def test_reserves_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    text = MINIMAL + "admission: {kv_reserve_least: 3}\n"
    with pytest.raises(ConfigError, match="kv_reserve_least must not be above"):
        ServeConfig.load(written(tmp_path, text))
