"""Generated requests, as `python -m benchmarks.api_cases` sends them over HTTP, in this process."""

from __future__ import annotations

from benchmarks.api_cases import Tally, config, figures, run_cases


def test_generated_requests_get_no_5xx_and_what_the_openapi_says(graph, doubtful):
    import schemathesis

    served = graph(policy=doubtful, cache=10, limits={"body_bytes": 200_000})
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", served.client.app, config=config(seed=7, headers={}, examples=5)
    )
    tally = run_cases(schema)
    assert tally.num_cases >= 2000
    assert not tally.problems, tally.examples
    answered = {operation for operation, status in tally.statuses if status == 200}
    assert {"POST /v1/rank", "POST /v1/risk/batch", "GET /v1/models"} <= answered
    assert "GET /v2/models/{model_name}/versions/{model_version}" in answered


def test_a_tally_knows_a_fault_from_a_refusal():
    tally = Tally()
    tally.add("GET /a", 200, {})
    tally.add("GET /a", 503, {})  # with Retry-After
    tally.add("GET /a", 500, {"server error 500": "curl"})
    tally.add("GET /a", 0, {"no answer": "curl"})
    values = {figure.id: figure.value for figure in figures(tally)}
    assert values == {
        "R6/cases": 4, "R6/server_errors": 1, "R6/busy": 1, "R6/unanswered": 1, "R6/problems": 2,
    }  # fmt: skip
