"""The model as /v1/models shows it: OpenAI's fields, and what a client wants to know beforehand.

Owns the object's fields. Refuses to know HTTP.
"""

from decimal import Decimal
from typing import Any

import msgspec

from serve_app.desk import ModelFacts
from serve_app.openai.generation_fields import MAX_TOKENS, GenerationFields
from serve_app.openai.schema import DEFAULT_MAX_TOKENS
from serve_app.sections import PriceSection
from serve_app.tenancy.refusals import Figures

_MILLION = 1_000_000
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


def model_object(facts: ModelFacts, figures: Figures) -> dict[str, Any]:
    """`figures`: the limits of whoever asks."""
    defaults = GenerationFields.model_fields
    return {
        "id": facts.id,
        "object": "model",
        "created": facts.created,
        "owned_by": "deeprequest",
        "context_length": facts.max_model_len,
        "max_model_len": facts.max_model_len,
        "served_by": facts.shown_name or facts.id,
        "default_sampling": {name: defaults[name].default for name in _SAMPLING},
        "limits": {
            "max_tokens": MAX_TOKENS,
            "default_max_tokens": DEFAULT_MAX_TOKENS,
            **_per_minute(figures),
        },
        "pricing": _per_token(facts.price) if facts.price is not None else None,
    }


def _per_minute(figures: Figures) -> dict[str, int | None]:
    meters = msgspec.structs.asdict(figures)
    return {f"{name}_per_minute": meter and meter.limit for name, meter in meters.items()}


def _per_token(price: PriceSection) -> dict[str, str]:
    """Decimal strings, as the lists of prices that clients read write them."""
    return {
        "currency": price.currency,
        "prompt": _decimal(price.input),
        "completion": _decimal(price.output),
        "input_cache_read": _decimal(price.of_cached),
    }


def _decimal(per_million: Decimal) -> str:
    return f"{per_million / _MILLION:.12f}".rstrip("0").rstrip(".")
