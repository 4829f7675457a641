"""`deeprequest bench …`: the options of the benchmarks, and their rows as lines or as a table.

What is measured, and how, is `serve_app.bench`'s; it is imported inside the commands. With --json
standard output carries nothing but JSON objects, one a line.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

app = typer.Typer(help="Measure the engine, or a running service.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")]
Number = Literal["auto", "float32", "bfloat16"]


@app.command()
def offline(  # noqa: PLR0913 - each is an option of the command
    model: Annotated[Path, typer.Option(help="The checkpoint's folder; no tokenizer is needed.")],
    batch: Annotated[str, typer.Option(help="Sequences decoded together.")] = "1,8,32",
    prompt_len: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 128,
    output_len: Annotated[int, typer.Option(help="Tokens generated for each prompt.")] = 128,
    prefill_len: Annotated[int, typer.Option(help="Tokens of the long prompt; 0: none.")] = 2048,
    tp: Annotated[int, typer.Option(min=1, help="Ranks that share the model.")] = 1,
    quantization: Annotated[Literal["none", "int8", "fp8"], typer.Option()] = "none",
    dtype: Annotated[Number, typer.Option(help="auto: the checkpoint's own.")] = "auto",
    kernels: Annotated[Literal["auto", "native", "torch"], typer.Option()] = "auto",
    speculation: Annotated[Literal["off", "ngram"], typer.Option()] = "off",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each rank; else all cores, shared.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Repetitions; medians are told.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the random prompts.")] = 0,
    deterministic: Annotated[bool, typer.Option(help="The engine's deterministic mode.")] = False,
    json: Json = False,
) -> None:
    """The engine without a service: decode, prefill, first token, memory.

    Random token ids, greedy, past any end of sequence; prefix cache and speculation off.
    """
    from serve_app.bench.offline import EngineOptions, run
    from serve_app.bench.workload import Workload, check

    try:
        batches = tuple(int(number) for number in batch.split(","))
        workload = Workload(model, batches, prompt_len, output_len, prefill_len, rounds, seed)
        check(workload)
        options = EngineOptions(
            tp, quantization, dtype, kernels, speculation, threads, deterministic
        )
        _show(run(workload, options), f"{model.name}, {prompt_len} + {output_len} tokens", json)
    except (ValueError, OSError, RuntimeError) as error:
        _fail(f"{error}")


@app.command()
def serve(  # noqa: PLR0913 - each is an option of the command
    base_url: Annotated[str, typer.Option(help="Of any OpenAI-compatible server.")],
    api_key: Annotated[str, typer.Option(help="Sent as a bearer token.")] = "",
    model: Annotated[str | None, typer.Option(help="Else the first that is listed.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Most requests in flight.")] = 32,
    requests: Annotated[
        int | None, typer.Option(min=1, help="In all; else twice the concurrency.")
    ] = None,
    prompt_len: Annotated[int, typer.Option(min=1, help="About so many tokens.")] = 128,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 128,
    rate: Annotated[
        str | None,
        typer.Option(help="Requests a second, or `burst`: all at once; else one after another."),
    ] = None,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="A good first token.")] = None,
    slo_gap_ms: Annotated[
        float | None, typer.Option(help="A good gap, kept by 99 % of a stream's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the prompts and the arrivals.")] = 0,
    timeout_s: Annotated[float, typer.Option(help="Of one request.")] = 600.0,
    plot: Annotated[Path | None, typer.Option(help="A .html or .png to write.")] = None,
    json: Json = False,
) -> None:
    """A running server over HTTP: first token, gaps, throughput, goodput."""
    import uvloop

    from serve_app.bench import plot as plots
    from serve_app.bench.http_stream import HttpError, Target
    from serve_app.bench.load import Arrivals
    from serve_app.bench.report import Objective, series, summary
    from serve_app.bench.serve import Ask, run

    try:
        plots.check(plot)
        arrivals = Arrivals(requests or 2 * concurrency, concurrency, _pace(rate), seed)
        ask = Ask(model, prompt_len, output_len, timeout_s=timeout_s, seed=seed)
        found = uvloop.run(run(Target(base_url, api_key), ask, arrivals))
        row = summary(found, Objective(slo_ttft_ms, slo_gap_ms))
        if plot is not None:
            plots.write(plot, series(found), row)
    except (ValueError, OSError, HttpError) as error:
        _fail(f"{error}")
    _show([row], base_url, json) if json else _print_summary(row, base_url)
    if row["failed"]:
        raise typer.Exit(1)


def _pace(rate: str | None) -> float | Literal["burst"] | None:
    """Raises ValueError: neither a number above 0 nor `burst`."""
    if rate is None or rate == "burst":
        return "burst" if rate else None
    if not float(rate) > 0:
        raise ValueError("rate must be above 0 requests a second, or burst")
    return float(rate)


def _print_summary(row: dict[str, Any], title: str) -> None:
    """Waiting times as columns of percentiles, all else below them."""
    times = Table("ms", "p50", "p90", "p99", "mean", "max", title=title)
    names = {"ttft_ms": "first token", "gap_ms": "gap", "request_ms": "whole request"}
    for name, label in names.items():
        if row.get(name):
            times.add_row(label, *(f"{value:,.1f}" for value in row[name].values()))
    rest = Table("what", "value")
    for name, value in ({**row, **row.get("goodput", {})}).items():
        if name not in (*names, "kind", "goodput"):
            rest.add_row(name, f"{value:,}" if isinstance(value, int | float) else str(value))
    Console().print(times, rest)


def _show(rows: Iterable[dict[str, Any]], title: str, json: bool) -> None:
    """Lines as soon as they are known, or one table at the end."""
    import orjson

    if json:
        for row in rows:
            sys.stdout.write(orjson.dumps(row).decode() + "\n")
            sys.stdout.flush()
        return
    table = Table("what", "of", "value", "unit", title=title)
    for row in rows:
        for cells in _cells(row):
            table.add_row(*cells)
    Console().print(table)


def _cells(row: dict[str, Any]) -> Iterable[tuple[str, str, str, str]]:
    """A row's figures, each under its unit."""
    units = {"tokens_per_s": "tokens/s", "ms": "ms", "mb": "MB", "seconds": "s", "start_s": "s"}
    known = ("batch", "length", "prompt_len", "rank", "planned_mb")
    about = [f"{name.replace('_', ' ')} {row[name]}" for name in known if name in row]
    for name, unit in units.items():
        if name in row:
            label = "start of the process" if name == "start_s" else str(row["kind"])
            yield label.replace("_", " "), ", ".join(about), f"{row[name]:,.1f}", unit


def _fail(message: str) -> NoReturn:
    line = Text.assemble(("error:", "red"), " ", message)
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)
    raise typer.Exit(1)
