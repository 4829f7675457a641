"""The official SDKs, each in an environment of its own; `make ecosystem` runs the other clients."""

import pytest

from tests.e2e.service import Service
from tests.ecosystem.environments import CACHE, build, clients, missing_tool
from tests.ecosystem.outcome import address, run

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["openai_python_2", "openai_python_3", "openai_node"])
def test_the_official_sdks_find_everything_they_ask_for(service: Service, name: str) -> None:
    (client,) = clients([name])
    if lacking := missing_tool(client):
        pytest.skip(lacking)
    build(client, CACHE)
    outcome = run(client, CACHE, address(service))
    assert outcome.green, outcome.checks
    assert outcome.reasoning == "as reasoning"
    assert len(outcome.checks) == 11
