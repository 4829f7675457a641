"""What /openapi.json promises, held against a running service by schemathesis.

Every operation gets cases that fit its schema and cases that do not. Whatever comes back must be a
status that the document names, below 500, of the documented type and shape.

    python -m tests.e2e.fuzz --requests 2000
"""

import argparse
import contextlib
import json
import urllib.request
from collections import Counter
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.e2e.conformance.wire import MODEL, TIMEOUT_S
from tests.e2e.service import Service, running_service

HELD = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
Operation = APIOperation[Any, Any, Any, Any]
LENGTHS = ("max_tokens", "max_completion_tokens", "min_tokens")
BRIEF = 8


class Fuzz:
    """One service's document and what came of it."""

    def __init__(self, service: Service, number: int) -> None:
        """`number`: of the random sequence."""
        self._service, self._number = service, number
        made = service.cli("keys", "create", "--tenant", "fuzz", "--scope", "admin")
        self._admin_key = made["secret"]
        with urllib.request.urlopen(f"{service.url}/openapi.json", timeout=10) as reply:
            document = json.load(reply)
        found = schemathesis.openapi.from_dict(document).get_all_operations()
        self._operations = [one.ok() for one in found if isinstance(one, Ok)]
        self.answers: Counter[tuple[str, str, int]] = Counter()
        """By operation, kind of case and status."""
        self.failures: dict[str, str] = {}
        """The first finding of each kind, with what was sent."""

    def run(self, requests: int) -> None:
        """At least so many requests, spread evenly over what can be asked."""
        kinds = [(one, mode) for one in self._operations for mode in GenerationMode]
        while (missing := requests - self.answers.total()) > 0:
            for operation, mode in kinds:
                self._run(operation, mode, -(-missing // len(kinds)))

    def _run(self, operation: Operation, mode: GenerationMode, most: int) -> None:
        """Up to `most` requests of a kind: some have few cases, or none that are wrong."""

        @seed(self._number + self.answers.total())
        @settings(
            max_examples=most,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Case[Any]) -> None:
            self._ask(case, mode)

        with contextlib.suppress(Unsatisfiable):
            ask()

    def _ask(self, case: Case[Any], mode: GenerationMode) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            _make_answerable(case.body)
        is_admin = case.operation.path.startswith("/admin/")
        key = self._admin_key if is_admin else self._service.key
        headers = {"authorization": f"Bearer {key}"}
        reply = case.call(self._service.url, headers=headers, timeout=TIMEOUT_S)
        self.answers[case.operation.label, mode.value, reply.status_code] += 1
        try:
            case.validate_response(reply, checks=HELD)
        except FailureGroup as group:
            for failure in group.exceptions:
                kind = f"{case.operation.label}: {failure.title} ({reply.status_code})"
                self.failures.setdefault(kind, case.as_curl_command())


def _make_answerable(body: dict[str, Any]) -> None:
    """Random names of models are unknown, and long answers take long: neither tells much."""
    if "model" in body:
        body["model"] = MODEL
    for name in LENGTHS:
        if isinstance(body.get(name), int) and body[name] > BRIEF:
            body[name] = BRIEF


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with running_service() as service:
        fuzz = Fuzz(service, options.seed)
        fuzz.run(options.requests)
    for (label, kind, status), count in sorted(fuzz.answers.items()):
        print(f"{label:50} {kind:10} {status} {count:6}")
    print(f"{fuzz.answers.total()} requests, {len(fuzz.failures)} findings")
    for finding, curl in fuzz.failures.items():
        print(f"\n{finding}\n{curl[:2000]}")
    raise SystemExit(bool(fuzz.failures))


if __name__ == "__main__":
    main()
