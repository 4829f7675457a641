"""The ledger's folder: the nightly job, and who may reach the database."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import short_environment
from tests.k8s.kustomize import build
from tests.k8s.pods import Pod, one, pods, weaknesses
from tests.k8s.schemas import validate
from tests.k8s.test_security import opened
from tests.serve_app.typed import command_on

Objects = dict[str, dict[str, Any]]
DATABASE = {"app": "postgresql"}


@pytest.fixture
def ledger(tree: Path) -> Objects:
    return build(tree / "ledger")


@pytest.fixture
def job(ledger: Objects) -> Pod:
    template = one(ledger, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]
    return Pod("reconcile", template["metadata"]["labels"], template["spec"], {})


def test_an_api_server_would_take_every_object(ledger: Objects) -> None:
    for item in ledger.values():
        validate(item)


def test_the_job_is_restricted_and_runs_the_image_of_the_service(
    job: Pod, objects: Objects
) -> None:
    assert weaknesses(job.spec) == []
    assert job.main["image"].removesuffix("-cuda") == (
        pods(objects)["admin"].main["image"].removesuffix("-cuda")
    )


def test_its_command_is_one_that_the_project_has(
    job: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEEPREQUEST_LEDGER_URL", raising=False)
    program, *words = job.main["command"]
    assert program == "deeprequest"
    result = command_on(tmp_path)(*words)
    assert result.exit_code == 1, shlex.join(words)
    assert "has no ledger" in result.stderr


def test_it_reads_the_secret_that_the_service_reads(
    job: Pod, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(pod: Pod) -> Any:
        (found,) = [e for e in pod.main["env"] if e["name"] == "DEEPREQUEST_LEDGER_URL"]
        return {**found["valueFrom"]["secretKeyRef"], "optional": None}

    for role in ("head", "worker", "admin"):
        assert source(pods(objects)[role]) == source(job)
    monkeypatch.setenv("DEEPREQUEST_LEDGER_URL", "postgresql://u@h/d")
    assert short_environment().ledger_url == "postgresql://u@h/d"


def test_who_uses_the_ledger_reaches_the_database_and_the_job_reaches_redis(
    job: Pod, ledger: Objects, objects: Objects
) -> None:
    together, made = objects | ledger, pods(objects)
    for pod in (job, made["head"], made["worker"], made["admin"]):
        assert (5432, 5432) in opened(together, "egress", pod.labels, DATABASE, "elsewhere")
    assert not opened(together, "egress", made["redis"].labels, DATABASE, "elsewhere")
    redis = made["redis"].labels
    assert (6379, 6379) in opened(together, "egress", job.labels, redis, "deeprequest")
    assert (6379, 6379) in opened(together, "ingress", redis, job.labels, "deeprequest")
