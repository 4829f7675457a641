"""ServeConfig: every setting of the service around the engine.

Owns the YAML file's schema and the environment: nothing else in the project reads either. Values
come from, strongest first: command-line options, `DEEPREQUEST_*` variables
(`DEEPREQUEST_HTTP__PORT`; `DEEPREQUEST_PORT`, `DEEPREQUEST_STATE_DIR` and `DEEPREQUEST_REDIS_URL`
for short), the YAML file, the defaults here. An empty variable counts as unset. Unknown keys are
errors. Knows no Ray and no Redis.
"""

from pathlib import Path
from typing import Any

import msgspec
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cluster.config import EngineConfig

DEFAULT_STATE_DIR = Path(".deeprequest")


class ConfigError(ValueError):
    """A setting is missing, unknown or out of bounds; the message names it and the remedy."""


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """The model as clients see it."""

    id: str = "deepseek-r1-32b"
    """The id clients ask for."""
    path: str
    """Folder with config.json, tokenizer.json and safetensors files; relative to the YAML file."""
    name: str | None = None
    """What really answers, when it is not the model of that id: shown as x-deeprequest-model."""


class HttpSection(Section):
    """The public HTTP side."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    keep_alive_s: float = Field(15.0, gt=0)
    """Seconds of silence after which a stream gets an SSE comment."""
    default_timeout_s: float = Field(600.0, gt=0)
    """A request older than this ends with an error."""


class AdmissionSection(Section):
    """Keys, limits and the queue (in Redis)."""

    redis_url: str | None = None
    """None: a private redis-server is started in the state directory (`deeprequest serve` only)."""
    pool: str = "main"
    pepper_file: str | None = None
    """File with the secret that keys are hashed with; None: `<state-dir>/pepper`. This path and the
    next are relative to the YAML file."""
    keys_file: str | None = None
    """File that keys and tenants are kept in; None: `<state-dir>/keys.json`."""
    lease_s: float = Field(10.0, gt=0.5)
    max_queued: int = Field(1024, ge=0)
    queue_timeout_s: float = Field(60.0, gt=0)


class DeltaSection(Section):
    """The token stream from model replicas back to an ingress."""

    host: str | None = None
    """Address an ingress listens on for its replicas; None: its node's address."""
    min_port: int = Field(20100, ge=1024, le=65535)
    max_port: int = Field(20199, ge=1024, le=65535)


class ScalingSection(Section):
    """How many model replicas run, and when that changes."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    target_backlog_s: float = Field(10.0, gt=0)
    """Seconds of work per replica above which another replica is asked for."""
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)


class DeploymentSection(Section):
    """How Ray Serve places the parts. CPU figures are Ray's logical CPUs."""

    ingress_replicas: int = Field(1, ge=1)
    ingress_cpus: float = Field(1.0, ge=0)
    replica_cpus: float = Field(1.0, ge=0)
    rank_cpus: float = Field(1.0, ge=0)
    placement_strategy: str = "STRICT_PACK"
    drain_timeout_s: float = Field(1200.0, ge=0)
    """How long a replica that is asked to leave may finish its streams."""


class ServiceState(Section):
    """Where a service keeps its state: all that the commands beside `serve` need to know."""

    admission: AdmissionSection = AdmissionSection()
    state_dir: Path = DEFAULT_STATE_DIR

    @property
    def pepper_path(self) -> Path:
        """The file with the secret that keys are hashed with."""
        given = self.admission.pepper_file
        return Path(given) if given else self.state_dir / "pepper"

    @property
    def keys_path(self) -> Path:
        """The file that keys and tenants are kept in."""
        given = self.admission.keys_file
        return Path(given) if given else self.state_dir / "keys.json"


class ServeConfig(ServiceState):
    """The whole configuration, resolved. `ServeConfig.load` is the way in."""

    model: ModelSection
    engine: dict[str, Any] = {}
    """Settings of `cluster.config.EngineConfig`, model_path excepted."""
    http: HttpSection = HttpSection()
    deltas: DeltaSection = DeltaSection()
    scaling: ScalingSection = ScalingSection()
    deployment: DeploymentSection = DeploymentSection()

    @field_validator("engine")
    @classmethod
    def _engine_is_valid(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "model_path" in value:
            raise ValueError("engine.model_path is set by model.path")
        engine_config(value, "-")
        return value

    @classmethod
    def load(cls, path: Path, **options: Any) -> "ServeConfig":
        """Read the YAML file at `path`; `options` such as `host`, `port`, `state_dir` win over it.

        Raises:
            ConfigError: naming the file, the key and what is wrong with it; or the variable.
        """
        values = _read_yaml(path)
        try:
            config = cls.model_validate(_Sources(**values).model_dump())
        except ValidationError as error:
            raise ConfigError(f"{path}: {_first_problem(error)}") from None
        except SettingsError as error:
            raise ConfigError(f"a DEEPREQUEST_* variable is not valid: {error}") from None
        return config.with_options(path.parent, **options)

    def with_options(self, base: Path, **options: Any) -> "ServeConfig":
        """A copy with command-line options and short environment names applied."""
        short = short_environment()
        http = {"host": options.get("host"), "port": options.get("port") or short.port}
        given = {name: value for name, value in http.items() if value is not None}
        model_path = (base / self.model.path).resolve()
        admission = self.admission
        files = {
            name: str((base / file).resolve())
            for name in ("pepper_file", "keys_file")
            if (file := getattr(admission, name))
        }
        redis_url = {"redis_url": short.redis_url or admission.redis_url}
        return self.model_copy(
            update={
                "http": HttpSection(**(self.http.model_dump() | given)),
                "model": self.model.model_copy(update={"path": str(model_path)}),
                "admission": admission.model_copy(update=files | redis_url),
                "state_dir": state_dir(options.get("state_dir"), self.state_dir),
            }
        )

    def require_redis(self) -> None:
        """Raises ConfigError unless Redis is named."""
        if self.admission.redis_url is None:
            raise ConfigError("set admission.redis_url or DEEPREQUEST_REDIS_URL")

    def engine_config(self) -> EngineConfig:
        """The engine's own settings, with the model's path filled in."""
        return engine_config(self.engine, self.model.path)


class _Sources(BaseSettings, ServeConfig):
    """ServeConfig's values from the YAML file (as arguments) and the environment."""

    model_config = SettingsConfigDict(
        env_prefix="DEEPREQUEST_",
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


class ShortEnvironment(BaseSettings):
    """The variables that need no section name. `short_environment` is the way in."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    port: int | None = Field(None, ge=1, le=65535, validation_alias="DEEPREQUEST_PORT")
    state_dir: Path | None = Field(None, validation_alias="DEEPREQUEST_STATE_DIR")
    redis_url: str | None = Field(None, validation_alias="DEEPREQUEST_REDIS_URL")


def short_environment() -> ShortEnvironment:
    """Raises ConfigError naming the variable when a value is not valid."""
    try:
        return ShortEnvironment()
    except ValidationError as error:
        raise ConfigError(_first_problem(error)) from None


def state_dir(option: Path | None = None, default: Path = DEFAULT_STATE_DIR) -> Path:
    """Where keys, Redis data and run information live: option, environment, else `default`."""
    return (option or short_environment().state_dir or default).resolve()


def service_state(config: Path | None = None, option: Path | None = None) -> ServiceState:
    """Of the service that runs with the YAML file `config`, or with none, on the state directory.

    Raises:
        ConfigError: the file or a variable is not valid.
    """
    if config is not None:
        return ServeConfig.load(config, state_dir=option)
    admission = AdmissionSection(redis_url=short_environment().redis_url)
    return ServiceState(admission=admission, state_dir=state_dir(option))


def engine_config(values: dict[str, Any], model_path: str) -> EngineConfig:
    """Raises ValueError naming the field when a value is unknown or out of bounds."""
    try:
        return msgspec.convert(values | {"model_path": model_path}, EngineConfig, strict=False)
    except msgspec.ValidationError as error:
        problem, _, field = str(error).replace("`", "").partition(" - at $")
        raise ValueError(f"engine{field}: {problem[0].lower()}{problem[1:]}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give another file with --config") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must hold a mapping of settings")
    return values


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False, include_url=False)[0]
    if problem["type"] == "value_error":  # of a validator here, which names the setting itself
        return str(problem["ctx"]["error"])
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
