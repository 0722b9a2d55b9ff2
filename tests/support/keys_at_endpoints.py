"""The keys of a run, the endpoints of its servers, and what each key gets at one."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from unittest.mock import MagicMock

import aiohttp
from fastapi import FastAPI
from fastapi.routing import APIRoute

from miles_async.engines.embedded.pages import build_pages
from miles_async.http.refusals import Refusals

KEYS = {"none": "", "router": "of-clients", "admin": "of-control", "engine": "of-engines", "wrong": "of-nobody"}
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")


def headers(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[key]}"} if KEYS[key] else {}


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path) of every endpoint of an application."""
    found = [(method, route.path) for route in app.routes if isinstance(route, APIRoute) for method in route.methods]
    assert len(found) > 4
    return sorted(found)


def engine_routes() -> list[tuple[str, str]]:
    # only its list of endpoints is looked at: nothing behind it is called
    nothing = MagicMock()
    pages = build_pages(nothing, nothing, nothing, {}, Refusals())
    found = [(method, path) for path, methods in pages.items() for method in methods]
    assert len(found) > 20
    return [*sorted(found), ("POST", "/generate"), ("PUT", "/generate")]


def sglang_routes() -> list[tuple[str, str]]:
    """Of the installed SGLang server, as its source has them; importing it would take a minute."""
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return []
    source = Path(spec.submodule_search_locations[0]) / "srt" / "entrypoints" / "http_server.py"
    found = []
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("app."):
            continue
        how = ast.unparse(node.func).removeprefix("app.")
        if not node.args or not isinstance(node.args[0], ast.Constant):
            continue
        listed = next((key.value for key in node.keywords if key.arg == "methods"), None)
        methods = ast.literal_eval(listed) if listed is not None else [how.upper()]
        found += [(method, str(node.args[0].value)) for method in methods if method in METHODS]
    assert len(found) > 50
    return found


async def statuses(url: str, method: str, path: str, body: bytes = b"{}") -> dict[str, int]:
    found = {}
    async with aiohttp.ClientSession() as session:
        for key in KEYS:
            async with session.request(method, url + path, data=body, headers=headers(key)) as answer:
                found[key] = answer.status
    return found
