"""What can be known of torch's symmetric memory without a GPU: names, schemas, groups."""

import datetime
import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.model.symmetric_memory import OPERATIONS, hindrance, named_group

SCHEMAS = {
    "one_shot_all_reduce_copy_out": "symm_buffer local_input reduce_op group_name out",
    "two_shot_all_reduce_out": "input reduce_op group_name output",
    "multimem_all_reduce_": "input reduce_op group_name",
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_installed_torch_takes_what_is_passed(name: str) -> None:
    schema = getattr(torch.ops.symm_mem, name).default._schema
    assert [argument.name for argument in schema.arguments] == SCHEMAS[name].split()


def test_nothing_hinders_2_4_and_8_ranks() -> None:
    assert [hindrance(size) for size in (2, 4, 8)] == ["", "", ""]


def test_what_hinders_is_named() -> None:
    assert "no kernels for 3 ranks" in hindrance(3)
    older = SimpleNamespace(one_shot_all_reduce_copy_out=1, multimem_all_reduce_=1)
    assert hindrance(4, older).endswith("lacks symm_mem::two_shot_all_reduce_out")


def test_torch_finds_a_named_group_while_it_lives() -> None:
    distributed: Any = dist
    store = distributed.HashStore()
    gloo = distributed.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = datetime.timedelta(seconds=5)
    options._devices = [gloo.create_device(hostname="127.0.0.1")]
    backend = gloo(store, 0, 1, options)
    resolve: Any = torch._C._distributed_c10d._resolve_process_group
    group = named_group("deeprequest-test", backend, store, 0, 1, torch.device("cpu"))
    assert resolve("deeprequest-test").group_name == group.group_name == "deeprequest-test"
    del group
    gc.collect()
    with pytest.raises(RuntimeError, match="destroyed"):
        resolve("deeprequest-test")
