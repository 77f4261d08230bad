"""The OpenAPI document is true, and nothing that it allows or forbids makes the server fail."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from remix_runtime.engines.fake import FakeConfig
from tests.unit.server.harness import BASE, Server, listening

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
EXAMPLES = 25


def assert_no_errors_of_fastapi(document: dict[str, Any]) -> None:
    """Its 422 is never sent: what is malformed is a 400 in our shape."""
    assert "HTTPValidationError" not in str(document)
    assert "ValidationError" not in document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            wrong = operation["responses"].get("400", {}).get("content", {})
            assert wrong or "requestBody" not in operation, path
            for content in wrong.values():
                kind = "AnthropicErrorBody" if "/v1/messages" in path else "ErrorBody"
                assert content["schema"] == {"$ref": f"#/components/schemas/{kind}"}


async def test_what_is_malformed_is_a_400(server: Server) -> None:
    document = (await server.client.get("/openapi.json")).json()
    assert_no_errors_of_fastapi(document)
    assert "422" not in str(document["paths"])


@pytest.mark.parametrize("mode", list(GenerationMode))
async def test_server_keeps_to_its_document(tmp_path: Path, mode: GenerationMode) -> None:
    # A list of too many messages is to be refused for that, and not as a body that is too large.
    config, limit = FakeConfig(max_running=200), 256 << 20
    async with listening(tmp_path, config, max_body_bytes=limit) as server:
        await asyncio.to_thread(explore, server.url, mode)
        assert server.engine.requests or mode is GenerationMode.NEGATIVE
        await server.expect_good_request()


def explore(url: str, mode: GenerationMode) -> None:
    for result in schemathesis.openapi.from_url(
        f"{url}/openapi.json", timeout=120
    ).get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.POSITIVE:
            explore_operation(operation, mode, CHECKS)
        elif operation.body:  # nothing else has a wrong form
            explore_operation(operation, mode, [*CHECKS, negative_data_rejection])


def explore_operation(operation: Any, mode: GenerationMode, checks: list[Any]) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES if operation.body else 3,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def try_case(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body["model"] = BASE  # else nothing gets past the 404
        case.call_and_validate(checks=checks, timeout=120)

    try_case()
