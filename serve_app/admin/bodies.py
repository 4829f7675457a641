"""What may be asked of the admin API, and the errors that tell what is wrong with it.

Owns the bodies' shapes. Their fields and types are those of the records, so that neither can drift;
a field that does not exist is an error, because a limit that is spelt wrong would bind nobody.
"""

import re
from collections.abc import Iterable
from typing import Annotated, Any, get_type_hints

import msgspec

from serve_app.openai import errors
from serve_app.openai.body import json_object
from serve_app.openai.errors import ApiError
from serve_app.tenancy.key_defaults import KeyDefaults
from serve_app.tenancy.key_settings import KEY_SETTINGS, TENANT_SETTINGS
from serve_app.tenancy.keys import ApiKey, Tenant
from serve_app.tenancy.limiter import Limits

MOST_OVERLAP_S = 90 * 86_400
DAY_S = 86_400


def _body(name: str, settings: Iterable[str], **own: Any) -> type[msgspec.Struct]:
    """A body whose `settings` may each be left out."""
    kinds: dict[str, Any] = {}
    for record in (Tenant, Limits, KeyDefaults, ApiKey):
        kinds |= get_type_hints(record, include_extras=True)
    fields: list[Any] = [*own.items()]
    fields += [(one, kinds[one] | msgspec.UnsetType, msgspec.UNSET) for one in settings]
    return msgspec.defstruct(name, fields, kw_only=True)


KEY_WISH = _body("KeyWish", KEY_SETTINGS, tenant=str)
KEY_CHANGE = _body("KeyChange", KEY_SETTINGS)
TENANT_CHANGE = _body("TenantChange", TENANT_SETTINGS)


class Rotation(msgspec.Struct):
    """How long the present secret stays good."""

    overlap_s: Annotated[int, msgspec.Meta(ge=0, le=MOST_OVERLAP_S)] = DAY_S


def parse(body: bytes, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The fields that a body names, checked; a null field is one left out.

    Raises:
        ApiError: it is not a JSON object, or a field is unknown or of the wrong type.
    """
    fields = json_object(body) if body else {}
    known = [field.name for field in msgspec.structs.fields(kind)]
    if fields.keys() - set(known):
        message = f"The body has a field that does not exist. There are: {', '.join(known)}."
        raise errors.invalid_value(None, message)
    try:
        parsed = msgspec.structs.asdict(msgspec.convert(fields, kind))
    except msgspec.ValidationError as error:
        raise wrong_value(error, known) from None
    return {name: value for name, value in parsed.items() if value is not msgspec.UNSET}


def wrong_value(error: Exception, known: Iterable[str] = KEY_SETTINGS) -> ApiError:
    """What the records refuse, in their words less the value; the first of `known` is named."""
    problem, _, path = str(error).replace("`", "").partition(" - at $.")
    missing = re.fullmatch("Object missing required field (.*)", problem)
    if missing is not None:
        return errors.missing_parameter(missing[1])
    names = re.findall(r"\w+", f"{path} {problem}")
    param = next((name for name in names if name in known), None)
    problem = re.sub("Invalid enum value '.*'", "it is none of its values", problem)
    about = f"Invalid value for '{param}': " if param is not None else ""
    return errors.invalid_value(param, f"{about}{problem}.")
