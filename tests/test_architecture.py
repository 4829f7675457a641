"""The house keeps its shape: sizes, forbidden calls, paths named in documents, light imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from cluster.config import EngineConfig

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = sorted([*ROOT.glob("cluster/**/*.py"), *ROOT.glob("serve_app/**/*.py")])
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FORBIDDEN_CALLS = {"eval", "exec"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "marshal", "shelve"}


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    for function in functions(ast.parse(source)):
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        assert length <= MAX_FUNCTION_LINES, function.name


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_evaluates(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.module.split(".")[0] not in FORBIDDEN_MODULES
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert ast.unparse(node.func) not in {"torch.load", "yaml.load"}
        if isinstance(node, ast.keyword):
            assert node.arg != "trust_remote_code"


def test_every_path_named_in_the_documents_exists() -> None:
    named = re.compile(r"`((?:cluster|serve_app|k8s|tests|configs|docs)/[\w./-]+)`")
    missing = [
        f"{document.relative_to(ROOT)}: {name}"
        for document in DOCUMENTS
        for name in named.findall(document.read_text())
        if not (ROOT / name).exists()
    ]
    assert not missing


def test_readme_fits_a_newcomer() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_engine_has_few_settings() -> None:
    assert len(msgspec.structs.fields(EngineConfig)) <= 30


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("serve_app.routes", "torch transformers"),
        ("serve_app.cli", "torch transformers ray fastapi"),
        ("cluster.text.template", "torch transformers"),
        ("cluster.engine.scheduler", "torch"),
        ("cluster.engine.engine_core", "ray redis fastapi"),
        ("cluster.worker.worker", "ray redis fastapi"),
    ],
)
def test_importing_a_room_leaves_heavy_libraries_out(module: str, heavy: str) -> None:
    found = f"set('{heavy}'.split()) & set(sys.modules)"
    check = f"import sys, {module}; sys.exit(' '.join({found}) or None)"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
