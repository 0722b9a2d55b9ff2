"""All pages that the router has."""

from __future__ import annotations

from miles_async.router.fleet import RouterFleet
from miles_async.router.observe.loads import LoadPoller
from miles_async.router.pages.miles import add_miles_pages
from miles_async.router.pages.status import add_status_pages
from miles_async.router.pages.table import PageTable
from miles_async.router.pages.workers import add_worker_pages


def own_pages(router: RouterFleet, loads: LoadPoller) -> PageTable:
    """The table of a router's pages."""
    table = PageTable()
    add_worker_pages(table, router)
    add_miles_pages(table, router)
    add_status_pages(table, router, loads)
    return table
