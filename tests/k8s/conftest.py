import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # for `tests.k8s.…`, the interpreter and the validators

from tests.k8s.kustomize import build  # noqa: E402

SECRETS = {"ray-auth-token": "a" * 64, "redis-password": "b" * 64, "key-pepper": "c" * 64}


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of k8s/ with the three secrets that a user makes."""
    copy = tmp_path_factory.mktemp("tree") / "k8s"
    shutil.copytree(ROOT / "k8s", copy)
    for name, value in SECRETS.items():
        (copy / "secrets" / name).write_text(value)
    return copy


@pytest.fixture(params=["cpu", "single-node"])
def overlay(request: pytest.FixtureRequest, tree: Path) -> Path:
    """The folder of each overlay in turn."""
    return tree / "overlays" / str(request.param)


@pytest.fixture
def objects(overlay: Path) -> dict[str, dict[str, Any]]:
    """What the overlay renders to, by identity."""
    return build(overlay)
