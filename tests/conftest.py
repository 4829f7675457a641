"""How the tests are shared out when two workers run them beside each other (`make test`).

The black-box tests share one running service, so one worker runs them all, from the beginning:
they are the largest share. Everything else goes to whoever is free, the longest first: nobody
should wait at the end for a test begun last.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

BLACK_BOX = "tests/e2e/"


class Shares(LoadScopeScheduling):  # type: ignore[misc]
    """What must run in one worker; each test is a share of its own, but for the black-box tests."""

    def _split_scope(self, nodeid: str) -> str:
        return BLACK_BOX if nodeid.startswith(BLACK_BOX) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Shares:
    return Shares(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
