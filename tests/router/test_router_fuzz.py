"""Every page of a live router under what its own OpenAPI document allows and forbids: nobody dies, every answer is documented.

The raw bytes below HTTP are in ``test_fuzz_http.py``.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from fake_engines import FakeEngine, served
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi import checks

from miles_async.router.app import RouterApp
from miles_async.router.pages.openapi import PASSED_ON

EXAMPLES = 10  # of each operation, about half of them malformed; of one with a body so many, and so many malformed
KEY = "fuzzed"
CONFORMS = [checks.status_code_conformance, checks.response_schema_conformance, checks.content_type_conformance]


@pytest.fixture(scope="module")
def router() -> Iterator[tuple[RouterApp, str]]:
    """A router and its URL, in a thread, with one engine that answers everything."""
    app, loop, ready, stop = (
        RouterApp(api_key="of-clients", admin_key=KEY, wait_s=0.02),
        asyncio.new_event_loop(),
        threading.Event(),
        asyncio.Event(),
    )
    urls: list[str] = []

    async def serve() -> None:
        async with served(FakeEngine("synthetic")) as engine, served(app) as url:
            app.add("synthetic", engine, version=3)
            urls.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(20)
    yield app, urls[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


def test_no_request_that_its_document_allows_or_forbids_harms_the_router(router: tuple[RouterApp, str]) -> None:
    app, url = router
    auth = {"authorization": f"Bearer {KEY}"}
    schema = schemathesis.openapi.from_url(url + "/openapi.json", headers=auth)
    operations = [result.ok() for result in schema.get_all_operations()]
    operations = [one for one in operations if one.path not in PASSED_ON[1:]]  # which are documented alike
    operations.sort(key=lambda operation: operation.path not in PASSED_ON)  # before there are engines that are none
    seen: Counter[tuple[str, int]] = Counter()
    for operation in operations:
        strategies = [operation.as_strategy(generation_mode=GenerationMode.POSITIVE)]
        if operation.body or operation.query or operation.headers or operation.path_parameters:
            strategies.append(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
        # what has no body may have nothing that can be malformed
        for strategy in strategies if operation.body else [st.one_of(strategies)]:

            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                phases=[Phase.generate],
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(strategy)
            def run(case: Case) -> None:
                response = case.call(headers=auth)
                seen[case.operation.label, response.status_code] += 1
                if case.operation.path in PASSED_ON and response.status_code == 503:
                    assert "serves weight version" in response.text  # such a version as no engine has
                else:
                    assert response.status_code < 500, (response.status_code, response.text)
                case.validate_response(response, checks=CONFORMS)

            run()
    statuses = {label: {status for other, status in seen if other == label} for label, _ in seen}
    assert len(statuses) == len(operations)
    assert {200, 400} <= statuses["POST /generate"], statuses
    assert 400 in statuses["POST /workers"] and 400 in statuses["POST /add_worker"], statuses
    for name in set(app.engines) - {"synthetic"}:
        requests.delete(f"{url}/workers/{name}", headers=auth, timeout=10).raise_for_status()
    answer = requests.post(url + "/generate", b"x", headers=auth, timeout=10)
    assert (answer.status_code, answer.content) == (200, b"synthetic:x")
