"""What an API server would say of an object: built-in kinds and KubeRay's RayService.

Owns the two validators and the application of defaults, which comes first on a server too. Unknown
fields are errors everywhere: a server would drop them silently. CEL rules are not evaluated.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES_VERSIONS = ("1.31", "1.34", "1.37")
SCHEMA_FILE = Path(__file__).parent / "crds" / "rayservice-v1.7.0.json.gz"


class SchemaError(ValueError):
    """An API server would refuse the object, or drop a part of it."""


def validate(item: dict[str, Any]) -> None:
    """Check one rendered object.

    Raises:
        SchemaError: naming the field.
    """
    if item["apiVersion"] == "ray.io/v1" and item["kind"] == "RayService":
        return _validate_rayservice(item)
    for version in KUBERNETES_VERSIONS:
        validate_builtin(item, version)


def validate_builtin(item: dict[str, Any], version: str) -> None:
    """Check an object of Kubernetes' own kinds against one version, strictly."""
    try:
        kubernetes_validate.validate(item, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        raise SchemaError(f"{item['kind']}: {error}") from None


def _validate_rayservice(item: dict[str, Any]) -> None:
    schema = json.loads(gzip.decompress(SCHEMA_FILE.read_bytes()))
    filled = with_defaults(item, schema)
    strict = _strict(schema)
    strict["properties"]["metadata"] = {"type": "object"}
    problem = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(strict).iter_errors(filled)
    )
    if problem is not None:
        raise SchemaError(f"RayService {problem.json_path}: {problem.message}")


def with_defaults(value: Any, schema: dict[str, Any]) -> Any:
    """A copy of `value` with the schema's defaults filled in, as a server does first."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        rest = schema.get("additionalProperties", {})
        defaults = {
            key: sub["default"]
            for key, sub in properties.items()
            if "default" in sub and key not in value
        }
        known = {
            key: with_defaults(item, properties.get(key, rest if isinstance(rest, dict) else {}))
            for key, item in value.items()
        }
        return defaults | known
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    return value


def _strict(schema: Any) -> Any:
    """OpenAPI v3 as JSON schema, with every object closed."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    result = {
        key: {name: _strict(sub) for name, sub in item.items()}
        if key == "properties"
        else _strict(item)
        for key, item in schema.items()
        if not key.startswith("x-kubernetes-") and key != "format"
    }
    if schema.get("type") == "object" and "additionalProperties" not in schema:
        result["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return result
