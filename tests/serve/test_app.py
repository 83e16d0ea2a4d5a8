"""The page, and the promise that every answer matches the published schema."""

import json
import re
from importlib import resources

import pytest


def test_the_page_is_small_and_needs_nothing_from_elsewhere(serve) -> None:
    client = serve(start=False)
    texts = [client.get(path).text for path in ("/", "/static/app.js", "/static/style.css")]
    assert sum(map(len, texts)) < 100_000
    assert not any(re.search(r"https?://(?!127)", text) for text in texts)
    assert "<script>" not in texts[0] and "style=" not in texts[0] and not re.search(r"\son\w+=", texts[0])
    assert "innerHTML" not in texts[1] and "eval(" not in texts[1]


def test_only_the_page_s_own_files_are_served(serve) -> None:
    client = serve(start=False)
    for name in ("..%2fapp.py", "app.py", "index.html.bak"):
        assert client.get(f"/static/{name}").status_code == 404


def test_a_route_that_is_not_served_is_named(serve) -> None:
    answer = serve(start=False).post("/v1/images/edits", json={})
    assert answer.status_code == 404
    assert "POST /v1/images/edits is not served" in answer.json()["error"]["message"]


def test_every_control_has_a_name() -> None:
    page = resources.files("fewer.serve").joinpath("web", "index.html").read_text()
    inputs = re.findall(r"<(?:input|textarea)[^>]*>", page)
    assert inputs and page.count("<label") >= len(inputs)
    assert 'lang="en"' in page and 'role="alert"' in page


def test_streamed_answers_are_documented(serve) -> None:
    paths = serve(start=False).app.openapi()["paths"]
    drawn = paths["/v1/images/generations"]["post"]["responses"]["200"]["content"]
    assert set(drawn) == {"application/json", "text/event-stream"}
    followed = paths["/jobs/{job}/events"]["get"]["responses"]["200"]["content"]
    assert set(followed) == {"text/event-stream"}
    wrong = paths["/jobs/{job}/events"]["get"]["responses"]["404"].get("content", {})
    assert "text/event-stream" not in wrong


@pytest.mark.filterwarnings("ignore")
def test_fuzzed_requests_never_end_in_a_server_error(serve) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    client = serve(start=False)
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, headers={"host": "127.0.0.1"})
    tried = 0
    for operation in schema.get_all_operations():
        op = operation.ok()
        if op.path in ("/jobs/{job}/events", "/v1/images/generations"):
            continue  # they wait for a worker, and here is none

        for case in _cases(op, 12):
            tried += 1
            answer = case.call(headers={"host": "127.0.0.1"})
            assert answer.status_code < 500, (op.path, answer.text)
    assert tried > 50
    assert json.loads(client.get("/health").text)["status"] == "ok"


def _cases(operation: object, count: int) -> list:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    cases: list = []

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        cases.append(data.draw(operation.as_strategy()))

    collect()
    return cases
