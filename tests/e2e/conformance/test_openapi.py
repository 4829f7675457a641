"""The document of the API is true: no status, type or shape that it does not name."""

import pytest

from tests.e2e.fuzz import Fuzz
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e
REQUESTS = 200


def test_every_answer_is_one_that_the_document_names(service: Service) -> None:
    """A tenth of what `python -m tests.e2e.fuzz` asks."""
    fuzz = Fuzz(service, number=1)
    fuzz.run(REQUESTS)
    assert fuzz.answers.total() >= REQUESTS
    assert not fuzz.failures
