"""A real browser, headless, and the pages of a directory of runs served to it from this process."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from miles_async.http.limits import answer_at_once
from miles_async.http.refusals import Refusals
from miles_async.http.server import HttpServer
from miles_async.web.app import application
from miles_async.web.places import Places

DEADLINE_S = 120.0  # of a busy machine
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars"),
)
WIDE, PHONE = (1440, 900), (390, 844)
# elements that a reader can reach or hears of, and that have no name
NAMELESS = """
return [...document.querySelectorAll('a, button, input, select, [role=img], [role=region], [role=group]')].filter(node =>
  !(node.getAttribute('aria-label') || node.textContent.trim() || (node.labels && node.labels.length))
).map(node => node.outerHTML.slice(0, 200));
"""


class Browser:
    """One session for as many pages as a test wants. Every wait ends after ``DEADLINE_S``, naming what did not come."""

    def __init__(self, data: Path) -> None:
        programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
        assert all(programs), "the tests of the pages need a browser: apt-get install chromium chromium-driver"
        options = Options()
        options.binary_location = str(programs[0])
        for flag in (*FLAGS, f"--user-data-dir={data}", f"--window-size={WIDE[0]},{WIDE[1]}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, Service(str(programs[1])))
        self.driver.set_page_load_timeout(DEADLINE_S)

    def open(self, address: str) -> None:
        """A page, anew even where only what is behind its # differs."""
        self.driver.get("about:blank")
        self.driver.get(address)

    def wait_until(self, holds: Callable[[], Any], otherwise: str) -> Any:
        """What ``holds`` returns, as soon as that is something."""
        return WebDriverWait(self.driver, DEADLINE_S, poll_frequency=0.05).until(lambda _: holds(), otherwise)

    def wait(self, text: str, within: str = "body") -> str:
        """Until the element says ``text``; what it says then."""
        self.wait_until(lambda: text in self.says(within), f'"{text}" did not come into {within}')
        return self.says(within)

    def wait_for(self, selector: str) -> WebElement:
        """Until there is such an element."""
        return self.wait_until(lambda: next(iter(self.all(selector)), None), f"no {selector} came")

    def says(self, selector: str) -> str:
        """The text of the first such element; "" where there is none (any more)."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector))

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def resize(self, size: tuple[int, int]) -> None:
        """The size of what is seen, also below the least that a window may have."""
        about = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", about)

    def prefer(self, scheme: str) -> None:
        """ "light" or "dark"."""
        about = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", about)

    def complaints(self) -> list[str]:
        """What the browser's console has said since the last time: errors of scripts, what the policy refused."""
        return [entry["message"] for entry in self.driver.get_log("browser") if "favicon" not in entry["message"]]

    def close(self) -> None:
        self.driver.quit()


@contextlib.contextmanager
def served(root: Path, key: str | None = None) -> Iterator[str]:
    """The address of the pages of ``root``."""
    listener = socket.create_server(("127.0.0.1", 0))
    answer_at_once(listener)
    over = threading.Event()
    server = HttpServer(application(Places(root), key, over), Refusals(), timeout_graceful_shutdown=2)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        server.should_exit = True
        thread.join(DEADLINE_S)
        listener.close()
        assert not thread.is_alive(), "the server did not end"
