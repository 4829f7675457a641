"""A running service for the black-box tests, once per session."""

from collections.abc import Iterator

import pytest

from tests.e2e.service import Service, running_service


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    with running_service() as running:
        yield running
