"""5,000 requests made from our own OpenAPI file by schemathesis, against the app with running workers.

No answer may be a server error (507, the honest "not enough memory", included: the stand-in never lacks any),
and every answer must have a documented status and a body that fits its schema.

    python benchmarks/serve_fuzz.py [--requests 5000]
"""
# bench: cpu, 10 min:

import argparse
import os
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from record import record
from schemathesis.specs.openapi import checks
from serve_stand_in import stand_in_app

HEADERS = {"host": "127.0.0.1"}


def fuzz(operation: object, count: int, client: TestClient, answers: Counter, wrong: list[str]) -> int:
    """At most `count` more requests to one operation; gives how many (one without parameters has few)."""
    quiet, before = list(HealthCheck), answers[operation.label]

    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=quiet, phases=[Phase.generate]
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        if (
            answers[operation.label] - before >= count
        ):  # hypothesis may try a little more than it was asked for
            return
        case = data.draw(st.one_of(operation.as_strategy(), operation.as_strategy(generation_mode=NEGATIVE)))
        answer = case.call(session=client, headers=HEADERS, timeout=120)
        answers[operation.label] += 1
        answers[answer.status_code] += 1
        if answer.status_code >= 500:
            wrong.append(f"{operation.label}: {answer.status_code} {answer.text[:200]}")
        try:
            case.validate_response(answer, checks=CHECKS)
        except (Exception, BaseExceptionGroup) as error:  # every kind of disagreement counts as one
            wrong.append(
                f"{operation.label}: {type(error).__name__} {str(getattr(error, 'exceptions', error))[:400]}"
            )

    one()
    return answers[operation.label] - before


NEGATIVE = schemathesis.GenerationMode.NEGATIVE
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=5000)
    wanted = parser.parse_args().requests
    warnings.simplefilter("ignore")
    answers: Counter = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        app = stand_in_app(Path(name), 0.0, 10_000, 1)
        began = time.perf_counter()
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HEADERS)
            operations = [found.ok() for found in schema.get_all_operations()]
            left, rich = wanted, operations
            while left > 0:  # what the poor ones leave over goes to those with something to vary
                share = left // len(rich) + 1
                made = [fuzz(operation, min(share, left), client, answers, wrong) for operation in rich]
                rich = [
                    operation for operation, n in zip(rich, made, strict=True) if n == min(share, left)
                ] or rich
                left -= sum(made)
            alive = client.get("/health", headers=HEADERS).json()
    labels = {operation.label for operation in operations}
    figures = {
        "engine": "stand-in: the figures are about the server, not a model",
        "requests": sum(answers[label] for label in labels), "operations": len(labels), "wrong": len(wrong),
        "examples_of_wrong": sorted(set(wrong))[:10],
        "statuses": {str(key): count for key, count in answers.items() if isinstance(key, int)},
        "health_after": alive, "seconds": round(time.perf_counter() - began, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print(figures)
    record("serve_fuzz", figures)


if __name__ == "__main__":
    main()
