"""The OpenAPI document of the router: its own pages, and what it asks of a request that it passes on."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi.openapi.utils import get_openapi

from miles_async.router.pages.table import PageTable

# what is documented of the paths that are passed on; router/access.py has them all
PASSED_ON = ("/generate", "/v1/completions", "/v1/chat/completions", "/v1/embeddings")
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}},
}


def document(table: PageTable) -> dict[str, Any]:
    """The document of the router's own pages and of the requests that are passed on to engines."""
    app = table.app
    made = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = made.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **_schemas(table), "Error": _ERROR}
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    made["security"] = [{"key": []}, {}]  # the key is asked for where router.api_key is set
    for path in PASSED_ON:
        made["paths"][path] = {"post": _passed_on(path)}
    return made


def _schemas(table: PageTable) -> dict[str, Any]:
    """Those of the bodies of all pages, by name, as ``components.schemas``."""
    return msgspec.json.schema_components(table.types, ref_template="#/components/schemas/{name}")[1]


def _header(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": schema}


def _passed_on(path: str) -> dict[str, Any]:
    version = {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refused = {
        "400": "a header is malformed; or the engine refused the request",
        "401": "the router's key is missing",
        "413": "the body is too long",
        "429": "too many requests wait or are in flight; Retry-After says how many seconds to wait",
        "502": "no engine gave an answer",
        "503": "no engine that fits came up in time; known ones and their versions are listed",
        "504": "no answer in time",
    }
    return {
        "summary": f"{path} of one engine",
        "parameters": [
            _header("x-routing-key", "requests with the same key go to the same engine", {"type": "string"}),
            _header("x-min-weight-version", "the oldest weight version that will do", version),
            _header("x-weight-version", "the only weight version that will do", version),
        ],
        "requestBody": {"content": {"application/json": {"schema": {}}}},
        "responses": {
            "default": {"description": "the engine's answer, unchanged"},
            **{status: {"description": why, "content": error} for status, why in refused.items()},
        },
    }
