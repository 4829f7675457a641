"""A plan's tables for people: memory, requests at once, speed and cost."""

from typing import Any

from rich.console import Console
from rich.table import Table

GIB = 2**30
_NUMBERS = {1: "8-bit", 2: "bf16", 4: "fp32"}


def show(found: dict[str, Any]) -> None:
    """Print a plan as `cluster.plan.report` gives it, with the model's name."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    console.print(_headline(found))
    if "per_rank" in found:
        console.print(_memory(found))
        console.print(_requests(found))
        console.print(_speed(found))
        console.print(_prompt(found))
    if not found["fits"]:
        console.print(f"\ndoes not fit: {found['problem']}", style="red")
        console.print("settings that would fit:" if found["remedies"] else "nothing known fits")
        for line in found["remedies"]:
            console.print(f"  {line}")


def _headline(found: dict[str, Any]) -> str:
    device, settings = found["device"], found["settings"]
    ranks = settings["tensor_parallel_size"]
    many = f"{device['count']} x " if device["count"] > 1 else ""
    among = f", {ranks} ranks" if ranks > device["count"] else ""
    weights = _NUMBERS[settings["weight_bytes_per_number"]]
    kv = _NUMBERS[settings["kv_bytes_per_number"]]
    return (
        f"{found['model']} ({settings['parameters'] / 1e9:.2f} B parameters, {weights} weights, "
        f"{kv} KV) on {many}{device['name']}{among}\n"
        f"({device['memory_gib']:g} GiB, {device['gb_per_s']:,.0f} GB/s, "
        f"{device['tflops']:g} TFLOP/s, {device['price_per_hour']:g} $/h each)"
    )


def _memory(found: dict[str, Any]) -> Table:
    rank = found["per_rank"]
    table = Table("memory per rank")
    for name in ("GiB", "bytes"):
        table.add_column(name, justify="right")
    rows = {
        "weights": rank["weight_bytes"],
        "process, activations": rank["overhead_bytes"],
        "KV cache": rank["kv_cache_bytes"],
        "together": rank["total_bytes"],
    }
    for name, value in rows.items():
        table.add_row(name, f"{value / GIB:.2f}", f"{value:,}")
    return table


def _requests(found: dict[str, Any]) -> str:
    told = ", ".join(f"{row['requests']:,} of {row['length']:,}" for row in found["concurrency"])
    return (
        f"KV: {found['per_rank']['kv_bytes_per_token']:,} bytes a token and rank; room for "
        f"{found['kv_tokens']:,} tokens\n"
        f"longest context: {found['longest_context']:,} of the model's "
        f"{found['settings']['max_position']:,} tokens\n"
        f"requests at once: {told or 'none'} tokens\n"
        f"one stream: {found['one_stream']['floor_tokens_per_s']:,.0f} tokens/s at the floor"
    )


def _speed(found: dict[str, Any]) -> Table:
    context = found["decode"][0]["context"]
    table = Table("batch", caption=f"{context:,} tokens in each request's cache")
    for name in ("fits", "floor ms", "tokens/s", "expected", "$ per M tokens"):
        table.add_column(name, justify="right")
    for row in found["decode"]:
        table.add_row(
            str(row["batch"]),
            "yes" if row["fits"] else "no",
            f"{row['floor_ms']:,.2f}",
            f"{row['floor_tokens_per_s']:,.0f}",
            f"{row['expected_tokens_per_s']:,.0f}",
            f"{row['cost_per_million_tokens']:,.2f}",
        )
    return table


def _prompt(found: dict[str, Any]) -> str:
    row = found["prefill"]
    return (
        f"a prompt of {row['length']:,} tokens: {row['floor_ms']:,.0f} ms at the floor, "
        f"{row['expected_tokens_per_s']:,.0f} tokens/s to be expected, "
        f"{row['cost_per_million_tokens']:,.2f} $ per M tokens"
    )
