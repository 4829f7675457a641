"""The sections of the configuration: every setting of the service, its bounds and its default.

Owns the schema of the YAML file below its top level. Refuses to know where values come from: that
is for config.py to know.
"""

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

LEDGER_DATABASES = ("sqlite:///", "postgresql://", "postgres://")


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


TokenPrice = Annotated[Decimal, Field(ge=0, le=1000, decimal_places=6)]
"""Exact: what is charged is whole millionths of the currency's unit."""


class PriceSection(Section):
    """What tokens cost, each figure for a million of them."""

    currency: str = Field("USD", pattern="^[A-Z]{3}$")
    input: TokenPrice
    cached_input: TokenPrice | None = None
    """Prompt tokens found in the prefix cache; None: as much as others, and never more."""
    output: TokenPrice

    @model_validator(mode="after")
    def _cached_is_no_dearer(self) -> "PriceSection":
        if self.cached_input is not None and self.cached_input > self.input:
            raise ValueError("model.price.cached_input must not be above model.price.input")
        return self

    @property
    def of_cached(self) -> Decimal:
        """The price of cached input, given or not."""
        return self.input if self.cached_input is None else self.cached_input


class ModelSection(Section):
    """The model as clients see it."""

    id: str = "deepseek-r1-32b"
    """The id clients ask for."""
    path: str
    """Folder with config.json, tokenizer.json and safetensors files; relative to the YAML file."""
    name: str | None = None
    """What really answers, when it is not the model of that id: shown as x-deeprequest-model."""
    price: PriceSection | None = None
    """Told by /v1/models, written into the ledger, held against budgets of money."""
    closing_words: str = Field("", max_length=256)
    """Last words of thoughts that a budget or the loop breaker closes, such as "\\nTime is up.\\n".
    They count within the budget."""


class HttpSection(Section):
    """The public HTTP side."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    keep_alive_s: float = Field(15.0, gt=0)
    """Seconds of silence after which a stream gets an SSE comment."""
    stall_timeout_s: float = Field(30.0, gt=0)
    """A client that takes nothing of a stream for so long is taken for gone."""
    default_timeout_s: float = Field(600.0, gt=0)
    """A request older than this ends with an error."""
    cors_origins: tuple[str, ...] = ()
    """Origins such as "https://app.example" whose web pages may call this server from a browser;
    "*" is all."""
    max_choices: int = Field(8, ge=1, le=128)
    """The largest `n` of a request; OpenAI's own is 128."""


class IdempotencySection(Section):
    """Replies that are kept in Redis for requests with an Idempotency-Key."""

    keep_s: float = Field(86_400.0, gt=0)
    max_reply_bytes: int = Field(2**20, ge=1024)
    """A larger reply is not kept; a retry is told so."""
    max_bytes: int = Field(64 * 2**20, ge=2**20)
    """Of all replies together; the oldest go first."""


class ClassSection(Section):
    """What is so for the requests of one class. Shares are of 1."""

    reserved_share: float = Field(0.0, ge=0, le=1)
    """While they wait and hold less of the KV cache than this, they go before higher classes."""
    ceiling: float = Field(1.0, gt=0, le=1)
    """None of them starts where this share of the KV cache or of the slots would be passed."""
    promotion_s: float = Field(gt=0)
    """When they wait and none has started for so long, the next to start is one of them, whatever
    the ceiling."""
    queue_timeout_s: float | None = Field(None, gt=0)
    """Longest wait; None: `admission.queue_timeout_s`."""


class ClassesSection(Section):
    """The classes of requests, from the one that goes first to the one that goes last."""

    system: ClassSection = ClassSection(reserved_share=0.05, promotion_s=5)
    interactive: ClassSection = ClassSection(reserved_share=0.1, promotion_s=5)
    default: ClassSection = ClassSection(reserved_share=0.1, promotion_s=30)
    batch: ClassSection = ClassSection(ceiling=0.8, promotion_s=120, queue_timeout_s=300)

    @field_validator("*", mode="before")
    @classmethod
    def _keep_what_is_not_said(cls, value: Any, info: ValidationInfo) -> Any:
        usual = cls.model_fields[str(info.field_name)].default
        return usual.model_dump() | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _shares_fit(self) -> "ClassesSection":
        rules: list[ClassSection] = [getattr(self, name) for name in type(self).model_fields]
        if sum(rule.reserved_share for rule in rules) > 1:
            raise ValueError("admission.classes: the reserved shares must add up to 1 at most")
        ceilings = [rule.ceiling for rule in rules]
        if ceilings != sorted(ceilings, reverse=True):
            raise ValueError(
                "admission.classes: no class may have a ceiling above a higher class's"
            )
        return self


class AdmissionSection(Section):
    """Keys, limits and the queue (in Redis)."""

    redis_url: str | None = None
    """None: a private redis-server is started in the state directory (`deeprequest serve` only)."""
    pool: str = "main"
    pepper_file: str | None = None
    """File with the secret that keys are hashed with; None: `<state-dir>/pepper`. This path and the
    next are relative to the YAML file."""
    tenants_file: str | None = None
    """YAML file that tenants and keys are kept in, see configs/tenants.yaml; None:
    `<state-dir>/tenants.yaml`."""
    lease_s: float = Field(10.0, gt=0.5)
    redis_timeout_s: float = Field(0.2, gt=0.01, le=10)
    """The longest silence of one try; a call makes two, and after two failures nobody waits for
    Redis for a moment: twice this, and what is asked is answered as `on_outage` says."""
    on_outage: Literal["degraded", "closed"] = "degraded"
    """Without Redis: serve the keys it vouched for lately, each ingress within its share of all
    limits; or refuse every request with 503."""
    trust_keys_s: float = Field(300.0, ge=0)
    """How long after Redis vouched for a key it is served without Redis."""
    max_queued: int = Field(1024, ge=0)
    """Waiters in all; no tenant may have more than four fifths of them."""
    queue_timeout_s: float = Field(60.0, gt=0)
    kv_reserve_least: float = Field(0.4, gt=0, le=10)
    """KV cache reserved for a token of expected output: falls to this while requests wait beside
    idle cache ..."""
    kv_reserve_most: float = Field(2.0, gt=0, le=10)
    """... and rises to this when engines have to preempt. The same twice keeps it as it is."""
    classes: ClassesSection = ClassesSection()

    @model_validator(mode="after")
    def _reserves_are_in_order(self) -> "AdmissionSection":
        if self.kv_reserve_least > self.kv_reserve_most:
            raise ValueError(
                "admission.kv_reserve_least must not be above admission.kv_reserve_most"
            )
        return self


class LedgerSection(Section):
    """Where what was used is kept for good."""

    url: str | None = None
    """sqlite:///<path> or postgresql://<user>:<password>@<host>/<database>, also as
    DEEPREQUEST_LEDGER_URL; None: SQLite in `<state-dir>/ledger.db` (`deeprequest serve` only; on a
    cluster the newest entries stay in Redis and nothing is kept for good)."""

    @field_validator("url")
    @classmethod
    def _is_a_known_database(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(LEDGER_DATABASES):
            raise ValueError(
                "ledger.url must begin with sqlite:/// or postgresql://, then name the database"
            )
        return value


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
