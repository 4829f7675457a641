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
    about = [f"{name} {row[name]}" for name in ("batch", "length", "prompt_len") if name in row]
    for name, unit in units.items():
        if name in row:
            label = "start of the process" if name == "start_s" else str(row["kind"])
            yield label.replace("_", " "), ", ".join(about), f"{row[name]:,.1f}", unit


def _fail(message: str) -> NoReturn:
    line = Text.assemble(("error:", "red"), " ", message)
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)
    raise typer.Exit(1)
