"""ApiError: everything that can be said to a client whose request is not answered.

Owns the closed set of errors and their one shape, {"error": {message, type, param, code}}. Refuses
to know HTTP frameworks. Messages are fixed texts with the remedy; they never hold a value from a
request, so that nothing a client sent can leak into a log or onto another client's screen.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import orjson

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
MAX_RETRY_AFTER_S = 110
"""The openai client does not retry at all when it is asked to wait for more than 120 s."""
CONTEXT_CODE = "context_length_exceeded"
"""Stands in the message too: langchain-openai looks for it there, and openai 3 shows no code."""

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class ApiError(Exception):
    """An error as the client sees it. `param` names a field of the request, never its value."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers)


def envelope(error: ApiError) -> bytes:
    """The JSON body of an error; the same object travels in a stream's error event."""
    return orjson.dumps(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )


# 400: the request is wrong


def invalid_json() -> ApiError:
    return ApiError(
        400,
        "We could not parse the JSON body of your request. Send one JSON object (RFC 8259) encoded "
        "as UTF-8, without NaN or Infinity and nested less than 1,000 levels deep.",
        code="invalid_json",
    )


def invalid_type(param: str | None, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_type")


def invalid_value(param: str | None, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")


def missing_parameter(param: str) -> ApiError:
    message = f"Missing required parameter: '{param}'."
    return ApiError(400, message, param=param, code="missing_required_parameter")


def unsupported_parameter(param: str, remedy: str) -> ApiError:
    """`remedy` is a sentence such as "Leave it out."."""
    message = f"Unsupported parameter: '{param}' is not supported by this server. {remedy}"
    return ApiError(400, message, param=param, code="unsupported_parameter")


def invalid_idempotency_key() -> ApiError:
    message = "The Idempotency-Key header must be 1 to 255 visible ASCII characters."
    return ApiError(400, message, param="Idempotency-Key", code="invalid_value")


def context_length_exceeded(
    prompt_tokens: int, max_tokens: int, limit: int, param: str = "messages"
) -> ApiError:
    """Prompt and answer together do not fit into the context of `limit` tokens."""
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens. However, you requested "
        f"{prompt_tokens + max_tokens} tokens ({prompt_tokens} in the {param}, {max_tokens} in "
        f"the completion). Please reduce the length of the {param} or completion. "
        f"({CONTEXT_CODE})",
        param=param,
        code=CONTEXT_CODE,
    )


def prompt_too_long(limit: int, param: str = "messages") -> ApiError:
    """The text cannot fit whatever its tokens are; found before anything is tokenized."""
    return ApiError(
        400,
        f"This model's maximum context length is {limit} tokens. However, there is more in your "
        f"{param} than that many tokens can be. Please reduce the length of the {param}. "
        f"({CONTEXT_CODE})",
        param=param,
        code=CONTEXT_CODE,
    )


def grammar_too_complex() -> ApiError:
    """Found out while the answer was under way, in spite of all checks."""
    return ApiError(
        400,
        "The form that the answer must have turned out to be too complex. Use a schema with fewer "
        "choices, optional properties and patterns.",
        code="grammar_too_complex",
    )


# 401, 403: who asks


def invalid_api_key() -> ApiError:
    """No key, a wrong key, an expired or a revoked one: the client cannot tell which.

    litellm knows a 401 by the first four words; with others it has raised BadRequestError.
    """
    return ApiError(
        401,
        "Incorrect API key provided, or none. Send your key in the Authorization header, as in "
        "'Authorization: Bearer YOUR_KEY'.",
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def permission_denied(scope: str = "needed") -> ApiError:
    message = f"This API key may not do that. Use a key with the {scope} scope."
    return ApiError(403, message, code="permission_denied")


def origin_not_allowed() -> ApiError:
    message = (
        "Web pages of this origin may not call this server, or not by that method. Its operator "
        "lists the origins in http.cors_origins."
    )
    return ApiError(403, message, code="origin_not_allowed")


# 404 to 431: what the request is as an HTTP message


def model_not_found() -> ApiError:
    message = (
        "The requested model does not exist, or your API key may not use it. GET /v1/models lists "
        "those that you may."
    )
    return ApiError(404, message, param="model", code="model_not_found")


def unknown_url() -> ApiError:
    return ApiError(
        404,
        "Unknown request URL. This server answers POST /v1/chat/completions and GET /v1/models; "
        "see /docs for everything else.",
        code="unknown_url",
    )


def no_responses_api() -> ApiError:
    """Some SDKs call that API unless told otherwise."""
    return ApiError(
        404,
        "This server has no Responses API. Use POST /v1/chat/completions: the same model answers "
        "there, streamed or not.",
        code="unknown_url",
    )


def method_not_allowed(headers: Mapping[str, str] = _NO_HEADERS) -> ApiError:
    """`headers` carries Allow."""
    message = "This URL does not answer that HTTP method. See the Allow header."
    return ApiError(405, message, code="method_not_allowed", headers=headers)


def request_timeout() -> ApiError:
    message = "The request body did not arrive in time. Send it again, without pauses."
    return ApiError(408, message, code="request_timeout", headers={"connection": "close"})


def request_cancelled() -> ApiError:
    """Its owner stopped it, by its id."""
    message = "The request was cancelled, by its id and with its API key."
    headers = {"x-should-retry": "false"}
    return ApiError(409, message, code="request_cancelled", headers=headers)


def key_revoked() -> ApiError:
    """The key was good when the request began."""
    message = "The API key of this request was revoked. What had been generated is charged."
    headers = {"x-should-retry": "false"}
    return ApiError(401, message, code="invalid_api_key", headers=headers)


def request_not_found() -> ApiError:
    message = "No request with this id is waiting or running under your API key."
    return ApiError(404, message, param="id", code="request_not_found")


def key_not_found() -> ApiError:
    message = "No API key has this id. GET /admin/v1/keys lists them."
    return ApiError(404, message, param="key_id", code="key_not_found")


def tenants_file_unusable() -> ApiError:
    """Where and why is in the log: the file's path is nobody's business."""
    message = (
        "The tenants file of this ingress cannot be used, or is not the one that the service was "
        "told by. Change keys where that file is (`deeprequest admin` serves this API there), or "
        "give all ingresses the same one (admission.tenants_file); the log says what is wrong with "
        "this one."
    )
    return ApiError(409, message, code="tenants_file_unusable")


def body_too_large(limit: int) -> ApiError:
    message = f"The request body is larger than {limit} bytes. Please send less text."
    return ApiError(413, message, code="body_too_large")


def unsupported_media_type() -> ApiError:
    message = "Request bodies must be JSON. Send 'Content-Type: application/json'."
    return ApiError(415, message, code="unsupported_media_type")


def unsupported_content_encoding() -> ApiError:
    message = "Compressed request bodies are not accepted. Send the body as it is."
    return ApiError(415, message, code="unsupported_content_encoding")


def headers_too_large(limit: int) -> ApiError:
    message = f"The request's URL and headers are larger than {limit} bytes together."
    return ApiError(431, message, code="headers_too_large", headers={"connection": "close"})


# 5xx: our fault


def engine_error(code: str | None = None) -> ApiError:
    """The engine failed this request; `code` is its fixed code, such as `engine_numeric_error`."""
    message = "The model failed while it worked on this request. Please try again."
    return ApiError(500, message, type=SERVER_ERROR, code=code or "engine_error")


def internal_error(request_id: str | None = None) -> ApiError:
    asked = f" and mention the request id {request_id}" if request_id else ""
    message = f"The server had an error while processing your request. Please try again{asked}."
    return ApiError(500, message, type=SERVER_ERROR, code="internal_error")


def no_replica(retry_after_s: float) -> ApiError:
    """No model replica runs; `retry_after_s` is how long a start takes."""
    return _unavailable(
        "The model is starting. Please try again later.", "no_replica", retry_after_s
    )


def ledger_unavailable() -> ApiError:
    message = "The usage ledger does not answer. Please try again later."
    return _unavailable(message, "ledger_unavailable", 5.0)


def schemas_overloaded() -> ApiError:
    """More schemas are waiting to be checked than can be soon."""
    message = "Too many schemas are being checked. Please try again later."
    return _unavailable(message, "overloaded", 2)


def replica_lost() -> ApiError:
    """The machine that worked on this request is gone; its answer stays incomplete."""
    message = "The model replica that worked on this request was lost. Please try again."
    return _unavailable(message, "replica_lost", 1)


def generation_timeout() -> ApiError:
    message = "The request ran into the server's time limit. Ask for fewer tokens, or stream."
    return ApiError(504, message, type=SERVER_ERROR, code="timeout")


def own_timeout() -> ApiError:
    """Nobody wants the answer any more, so a client shall not send it again by itself."""
    message = (
        "The request ran into the time that it gave itself. Ask for fewer tokens, or raise "
        "x-deeprequest-timeout-ms."
    )
    headers = {"x-should-retry": "false"}
    return ApiError(408, message, code="timeout", headers=headers)


def _unavailable(message: str, code: str, retry_after_s: float) -> ApiError:
    headers = _retry_after(retry_after_s)
    return ApiError(503, message, type="service_unavailable", code=code, headers=headers)


def _retry_after(seconds: float) -> dict[str, str]:
    """Whole seconds rounded up, so that who waits exactly that long is not refused again."""
    bounded = min(max(seconds, 0.0), float(MAX_RETRY_AFTER_S))
    return {
        "retry-after": str(max(1, math.ceil(bounded))),
        "retry-after-ms": str(max(1, math.ceil(bounded * 1000))),
    }
