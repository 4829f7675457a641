"""How the tests are shared out when two workers run them beside each other (`make test`).

The black-box tests share one running service, so one worker runs them all. Everything else goes to
whoever is free, the longest first: nobody should wait at the end for a test begun last.
"""

from pathlib import Path

import pytest

BLACK_BOX = Path(__file__).parent / "e2e"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if BLACK_BOX in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("black-box"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
