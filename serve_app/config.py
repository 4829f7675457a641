"""ServeConfig: the settings of the service around the engine, from wherever they come.

Owns the YAML file and the environment: no other module reads either (but the compiled
kernels read `DEEPREQUEST_CPU_INSTRUCTIONS`). Values come from, strongest first: command-line
options, `DEEPREQUEST_*` variables (`DEEPREQUEST_HTTP__PORT`; `DEEPREQUEST_PORT`,
`DEEPREQUEST_STATE_DIR`, `DEEPREQUEST_REDIS_URL` and `DEEPREQUEST_LEDGER_URL` for short), the YAML
file, the defaults in sections.py. An empty variable counts as unset. Unknown keys are errors. Knows
no Ray and no Redis.
"""

from pathlib import Path
from typing import Any

import msgspec
import yaml
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from cluster.config import EngineConfig
from serve_app.sections import (
    AdmissionSection,
    DeltaSection,
    DeploymentSection,
    HttpSection,
    IdempotencySection,
    LedgerSection,
    ModelSection,
    ScalingSection,
    Section,
)

DEFAULT_STATE_DIR = Path(".deeprequest")


class ConfigError(ValueError):
    """A setting is missing, unknown or out of bounds; the message names it and the remedy."""


class ServiceState(Section):
    """Where a service keeps its state: all that the commands beside `serve` need to know."""

    admission: AdmissionSection = AdmissionSection()
    ledger: LedgerSection = LedgerSection()
    state_dir: Path = DEFAULT_STATE_DIR

    @property
    def pepper_path(self) -> Path:
        """The file with the secret that keys are hashed with."""
        given = self.admission.pepper_file
        return Path(given) if given else self.state_dir / "pepper"

    @property
    def journal_dir(self) -> Path | None:
        """Where requests served without Redis are kept until it has heard of them."""
        return self.state_dir / "journal" if self.admission.on_outage == "degraded" else None

    @property
    def tenants_path(self) -> Path:
        """The file that tenants and keys are kept in."""
        given = self.admission.tenants_file
        return Path(given) if given else self.state_dir / "tenants.yaml"

    @property
    def ledger_url(self) -> str:
        """The database of a service on this machine."""
        return self.ledger.url or f"sqlite:///{self.state_dir}/ledger.db"


class ServeConfig(ServiceState):
    """The whole configuration, resolved. `ServeConfig.load` is the way in."""

    model: ModelSection
    engine: dict[str, Any] = {}
    """Settings of `cluster.config.EngineConfig`, model_path excepted."""
    http: HttpSection = HttpSection()
    idempotency: IdempotencySection = IdempotencySection()
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
            for name in ("pepper_file", "tenants_file")
            if (file := getattr(admission, name))
        }
        redis_url = {"redis_url": short.redis_url or admission.redis_url}
        return self.model_copy(
            update={
                "http": HttpSection(**(self.http.model_dump() | given)),
                "model": self.model.model_copy(update={"path": str(model_path)}),
                "admission": admission.model_copy(update=files | redis_url),
                "ledger": LedgerSection(url=short.ledger_url or self.ledger.url),
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
    ledger_url: str | None = Field(None, validation_alias="DEEPREQUEST_LEDGER_URL")


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
    short = short_environment()
    return ServiceState(
        admission=AdmissionSection(redis_url=short.redis_url),
        ledger=LedgerSection(url=short.ledger_url),
        state_dir=state_dir(option),
    )


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
