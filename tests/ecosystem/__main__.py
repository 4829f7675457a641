"""`python -m tests.ecosystem [CLIENT ...]`: real clients against a running service, and a table.

Starts the quick start's service in a home of its own on a free port, builds each client's
environment (kept in a cache folder), runs its check, and leaves with 1 unless all are green.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from rich.console import Console

from tests.e2e.service import running_service
from tests.ecosystem.environments import CACHE, Client, NotBuilt, build, clients, missing_tool
from tests.ecosystem.outcome import LIMIT_S, Outcome, address, failed, run
from tests.ecosystem.table import blocks, terminal, write_into


def main() -> int:
    options = _options()
    chosen = clients(options.clients)
    with (
        tempfile.TemporaryDirectory(prefix="ecosystem-") as home,
        running_service({"HOME": home}) as service,
    ):
        reached = address(service)
        outcomes = [
            _shown(client, reached, options, f"[{number}/{len(chosen)}] {client.name}")
            for number, client in enumerate(chosen, 1)
        ]
    Console(width=200).print(terminal(outcomes))
    if options.json:
        told = [dataclasses.asdict(outcome) for outcome in outcomes]
        options.json.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    for document in options.write:
        write_into(document, blocks(outcomes, date.today()))
    return 0 if all(outcome.green for outcome in outcomes) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clients", nargs="*", help="folders of tests/ecosystem; all unless named")
    parser.add_argument("--cache", type=Path, default=CACHE, help="keeps the environments")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for one check")
    parser.add_argument("--json", type=Path, help="write what every check told to this file")
    parser.add_argument(
        "--write",
        type=Path,
        action="append",
        default=[],
        metavar="DOCUMENT",
        help="put the table between the marks of this Markdown file",
    )
    options = parser.parse_args()
    if options.clients and options.write:
        parser.error("--write is for a run of all clients")
    return options


def _shown(
    client: Client, reached: dict[str, str], options: argparse.Namespace, title: str
) -> Outcome:
    """Build and run one client, and say so on standard error."""
    print(f"{title}: building", end="", flush=True, file=sys.stderr)
    started = time.monotonic()
    outcome = _outcome(client, reached, options)
    wrong = [f"{name}: {told}" for name, told in outcome.checks.items() if told != "ok"]
    verdict = "green" if outcome.green else "; ".join(wrong)
    print(f", {time.monotonic() - started:.0f} s, {verdict}", file=sys.stderr)
    return outcome


def _outcome(client: Client, reached: dict[str, str], options: argparse.Namespace) -> Outcome:
    if lacking := missing_tool(client):
        return failed(client, lacking)
    try:
        build(client, options.cache)
    except NotBuilt as error:
        return failed(client, f"not built: {error}")
    print(", checking", end="", flush=True, file=sys.stderr)
    return run(client, options.cache, reached, options.limit)


if __name__ == "__main__":
    sys.exit(main())
