"""The OpenAPI document of the admin API is complete and true."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection

from tests.unit.admin.harness import API, KEY, Admin, listening
from tests.unit.server.test_openapi import CHECKS, assert_no_errors_of_fastapi

EXAMPLES = 25
HEADERS = {"Authorization": f"Bearer {KEY}"}


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


async def test_document_is_complete(admin: Admin) -> None:
    document = (await admin.client.get("/openapi.json")).json()
    found = operations(document)
    ids = [operation["operationId"] for _, _, operation in found]
    assert len(found) == len(set(ids)) >= 22
    assert all(name.replace("_", "").isalpha() for name in ids)
    for _, path, operation in found:
        assert operation["description"], path
        assert operation["security"] == [{"adminKey": []}]
        statuses = set(operation["responses"])
        assert {"401", "500", "503"} <= statuses
        assert ("404" in statuses) >= ("{" in path)
        assert ("415" in statuses) == ("requestBody" in operation)
        for status, answer in operation["responses"].items():
            assert answer["description"]
            if status >= "400":
                assert answer["content"]["application/json"]["schema"], (path, status)
    assert_no_errors_of_fastapi(document)
    refused = [
        op["responses"]["422"]["description"] for *_, op in found if "422" in op["responses"]
    ]
    assert len(refused) >= 3
    assert all("source" in text or "set" in text for text in refused)


async def test_preconditions_are_documented(admin: Admin) -> None:
    document = (await admin.client.get("/openapi.json")).json()
    tagged = {
        (method, path)
        for method, path, operation in operations(document)
        if "ETag" in operation["responses"].get("200", {}).get("headers", {})
    }
    conditional = {
        (method, path)
        for method, path, operation in operations(document)
        if any(item["name"] == "If-Match" for item in operation.get("parameters", ()))
    }
    one_set = f"{API}/tenants/{{tenant}}/set"
    assert conditional == {("put", one_set), ("post", f"{one_set}/rollback")}
    assert tagged == {*conditional, ("get", one_set)}


@pytest.mark.parametrize("mode", list(GenerationMode))
async def test_server_keeps_to_its_document(tmp_path: Path, mode: GenerationMode) -> None:
    async with listening(tmp_path) as admin:
        await admin.add_tenant()
        digest = await admin.add_adapter()
        await admin.put_set({"x": digest})
        known = {"tenant": "acme", "digest": digest}
        await asyncio.to_thread(explore, admin.url, mode, known)
        assert (await admin.client.get(f"{API}/tenants")).status_code == 200


def explore(url: str, mode: GenerationMode, known: dict[str, str]) -> None:
    document = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=HEADERS, timeout=120)
    document.validate()
    for result in document.get_all_operations():
        operation = result.ok()
        if mode is GenerationMode.POSITIVE or operation.body or operation.query:
            explore_operation(operation, mode, known)


def explore_operation(operation: Any, mode: GenerationMode, known: dict[str, str]) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES if operation.body else 8,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def try_case(case: schemathesis.Case) -> None:
        if operation.method != "delete":  # else nothing gets past the 404
            for name in known.keys() & case.path_parameters.keys():
                case.path_parameters[name] = known[name]
        assert case.meta is not None
        body = case.meta.components.get(ParameterLocation.BODY)
        # An unknown query parameter is ignored; it is not refused.
        wrong_body = body is not None and body.mode is GenerationMode.NEGATIVE
        checks = [*CHECKS, negative_data_rejection] if wrong_body else CHECKS
        case.call_and_validate(checks=checks, headers=HEADERS, timeout=120)

    try_case()
