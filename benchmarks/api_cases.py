"""Generated requests against the served application: no answer is a 5xx, all keep the OpenAPI.

    python -m benchmarks.api_cases                  # 20,000 cases
    python -m benchmarks.api_cases --cases 80       # says whether it runs

Schemathesis makes the cases out of /openapi.json: valid and invalid ones, boundary values, missing
and surplus keys, odd headers, other methods, no token. The application is served by Ray Serve on
this machine, with bearer tokens, a small and a large toy model of all tasks, and a policy that
defers.

Writes runs/bench/api_cases.json.
"""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.table import Figure, print_table, write_figures

__all__ = ["Tally", "config", "figures", "main", "run_cases"]

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = Path("runs/bench/api_cases.json")
_KEPT = 3  # examples of each problem
_POSTS = 10  # operations that take a body; beside the random cases they have systematic ones
# Serve and HTTP define TRACE nowhere, and a proxy may answer it on its own.
_METHODS = ["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"]


@dataclass
class Tally:
    """What came of the cases.

    Attributes:
        statuses: (operation, HTTP status; 0: no answer) -> cases.
        problems: (operation, what is wrong) -> cases.
        examples: the same -> commands that show it, a few each.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    problems: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    @property
    def num_cases(self) -> int:
        """Requests that were sent."""
        return self.statuses.total()

    def add(self, operation: str, status: int, problems: dict[str, str]) -> None:
        """Counts a case.

        Args:
            operation: method and path.
            status: of HTTP.
            problems: what is wrong -> a command that shows it.
        """
        self.statuses[operation, status] += 1
        for name, command in problems.items():
            self.problems[operation, name] += 1
            kept = self.examples.setdefault((operation, name), [])
            if len(kept) < _KEPT:
                kept.append(command)


#: 413: too long a list may also be too long a body. 404: no such model.
_REFUSALS = ["400", "401", "404", "405", "408", "413", "415", "422", "431", "5xx"]


def config(*, seed: int, headers: dict[str, str], examples: int) -> Any:
    """Schemathesis's settings: all ways of generation and all checks.

    Args:
        seed: of the cases.
        headers: sent with each.
        examples: random ones of an operation; fewer where there are no more, as of a GET.
    """
    from schemathesis.config import SchemathesisConfig

    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "headers": headers,
            "continue-on-failure": True,
            "request-timeout": 60,
            "generation": {"max-examples": examples, "no-shrink": True, "database": "none"},
            "phases": {"coverage": {"unexpected-methods": _METHODS}},
            # 503 with Retry-After is meant; `_problems` knows it from a fault.
            "checks": {
                "not_a_server_error": {"enabled": False},
                "negative_data_rejection": {"expected-statuses": _REFUSALS},
            },
            # Which tensors a model takes is what its metadata say, and no OpenAPI can.
            "operations": [
                {
                    "include-path-regex": "^/v2/.*/infer$",
                    "checks": {"positive_data_acceptance": {"enabled": False}},
                }
            ],
        }
    )


def run_cases(schema: Any) -> Tally:
    """Sends the cases: the systematic ones, then random ones.

    Args:
        schema: of Schemathesis, with `config`.
    """
    from schemathesis.engine import from_schema

    tally = Tally()
    for event in from_schema(schema).execute():
        if getattr(event, "exception", None) is not None:
            raise event.exception
        if (recorder := getattr(event, "recorder", None)) is not None:
            _count(tally, recorder)
    return tally


def _count(tally: Tally, recorder: Any) -> None:
    for case_id, interaction in recorder.interactions.items():
        case, response = recorder.cases[case_id].value, interaction.response
        command = case.as_curl_command()
        problems = {
            one.failure_info.failure.title: f"{one.failure_info.failure.message}\n{command}"
            for one in recorder.checks.get(case_id, ())
            if one.failure_info is not None
        }
        status = 0 if response is None else response.status_code
        if fault := _fault(status, response):
            problems[fault] = command
        tally.add(case.operation.label, status, problems)


def _fault(status: int, response: Any) -> str | None:
    """What is wrong with a status, whatever was asked."""
    if status == 0:
        return "no answer"
    if status in (429, 503):
        return None if "retry-after" in response.headers else f"{status} without Retry-After"
    return f"server error {status}" if status >= 500 else None


def figures(tally: Tally) -> list[Figure]:
    """The tally as the benchmark's figures."""
    num_faults = sum(count for (_, status), count in tally.statuses.items() if status >= 500)
    num_busy = sum(count for (_, status), count in tally.statuses.items() if status in (429, 503))
    num_lost = sum(count for (_, status), count in tally.statuses.items() if status == 0)
    counts = {
        "R6/cases": tally.num_cases,
        "R6/server_errors": num_faults - num_busy,
        "R6/busy": num_busy,
        "R6/unanswered": num_lost,
        "R6/problems": tally.problems.total(),
    }
    return [
        Figure(name, count, "requests", "none", count, count, 1) for name, count in counts.items()
    ]


@contextmanager
def _served(port: int, token: str) -> Iterator[str]:
    """The application with toy models on Ray Serve; its address."""
    sys.path.append(str(ROOT / "tests"))  # the toy models are the suite's own
    from served_toy import free_port, served_pair

    port = port or free_port()
    hashes = [hashlib.sha256(token.encode()).hexdigest()]
    with (
        tempfile.TemporaryDirectory() as folder,
        served_pair(Path(folder), http={"port": port}, security={"token_hashes": hashes}),
    ):
        yield f"http://127.0.0.1:{port}"


def _print(tally: Tally) -> None:
    print("| operation | cases | by status |")
    print("|---|---|---|")
    for operation in sorted({operation for operation, _ in tally.statuses}):
        of = {
            status: n for (name, status), n in sorted(tally.statuses.items()) if name == operation
        }
        by_status = ", ".join(f"{status}: {count}" for status, count in of.items())
        print(f"| {operation} | {sum(of.values())} | {by_status} |")
    for (operation, name), count in tally.problems.most_common():
        print(f"\n{operation}: {name} ({count})")
        for example in tally.examples[operation, name]:
            print(f"    {example[:2000]}")
    print()


def main() -> int:
    """Runs the benchmark; exit status 1 where anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", type=int, default=20_000, help="requests at least (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the cases (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="TCP port (default: a free one)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON (default: %(default)s)")
    options = parser.parse_args()
    import schemathesis

    token = secrets.token_urlsafe(32)
    headers = {"Authorization": f"Bearer {token}"}
    with _served(options.port, token) as url:
        schema = schemathesis.openapi.from_url(
            f"{url}/openapi.json",
            config=config(seed=options.seed, headers=headers, examples=options.cases // _POSTS),
            headers=headers,
        )
        tally = run_cases(schema)
    _print(tally)
    print_table(figures(tally))
    write_figures(options.output, figures(tally))
    return 1 if tally.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
