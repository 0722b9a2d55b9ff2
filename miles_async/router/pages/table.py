"""The router's own pages in one table, from which requests are routed, keys asked for, and ``/openapi.json`` made.

Promises: a page is added in one place, by its method, its path, what it needs, and what it takes and gives; one that is added
is never forwarded to an engine, and is documented.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI, Response

from miles_async.http.limits import refuse_in
from miles_async.router.access import Access, Routes

Handler = Callable[..., Awaitable[Any]]
# of an answer: what it means, empty where that is plain, and its type, if it has a JSON body
Answers = Mapping[int, tuple[str, type[msgspec.Struct] | None]]


class PageTable:
    """The pages of one router, and the ASGI application ``app`` that serves them."""

    def __init__(self) -> None:
        self.app = FastAPI(title="miles_async router", docs_url=None, redoc_url=None, openapi_url=None)
        self.routes = Routes()
        self.types: list[type[msgspec.Struct]] = []  # of bodies, each once
        refuse_in(self.app)

    def page(
        self,
        method: str,
        path: str,
        needs: Access,
        *,
        takes: type[msgspec.Struct] | None = None,
        needs_body: bool = True,
        gives: Answers | None = None,
        media_type: str | None = None,
    ) -> Callable[[Handler], Handler]:
        """Add the function below as a page. ``gives``: its answers by status, the usual one first; ``media_type``: of those
        that are no JSON. Raises ValueError: its path is forwarded."""
        self.routes.add(method, path, needs)
        answers = {200: ("", None)} if gives is None else gives
        documented: dict[str, Any] = {"status_code": next(iter(answers))}
        documented["responses"] = {status: self._answer(*said, media_type) for status, said in answers.items()}
        if takes is not None:
            documented["openapi_extra"] = {"requestBody": {"required": needs_body, "content": self._body_of(takes)}}

        def add(handler: Handler) -> Handler:
            self.app.add_api_route(path, handler, methods=[method], response_class=Response, **documented)
            return handler

        return add

    def _answer(self, meaning: str, body: type[msgspec.Struct] | None, media_type: str | None) -> dict[str, Any]:
        content = {media_type: {}} if body is None and media_type else None if body is None else self._body_of(body)
        return ({"description": meaning} if meaning else {}) | ({"content": content} if content else {})

    def _body_of(self, body: type[msgspec.Struct]) -> dict[str, Any]:
        if body not in self.types:
            self.types.append(body)
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}


def answer(body: msgspec.Struct, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")
