"""The running service of the conformance suite: two ingresses, short waits, once per session."""

import json
from collections.abc import Iterator

import openai
import pytest

from tests.e2e.conformance.wire import INGRESSES, KEEP_ALIVE_S, ORIGIN, STALL_TIMEOUT_S
from tests.e2e.service import Service, running_service

SETTINGS = {
    "DEEPREQUEST_DEPLOYMENT__INGRESS_REPLICAS": str(INGRESSES),
    "DEEPREQUEST_ENGINE__MAX_NUM_SEQS": "16",
    "DEEPREQUEST_HTTP__CORS_ORIGINS": json.dumps([ORIGIN]),
    "DEEPREQUEST_HTTP__KEEP_ALIVE_S": str(KEEP_ALIVE_S),
    "DEEPREQUEST_HTTP__STALL_TIMEOUT_S": str(STALL_TIMEOUT_S),
}


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with running_service(SETTINGS) as running:
        yield running


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    """The official SDK; it asks once and no more."""
    with service.client(max_retries=0) as client:
        yield client
