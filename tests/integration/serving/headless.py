"""A page in headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")


class Page:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)

    def run(self, script: str) -> Any:
        """The value of an expression; promises are waited for."""
        params = {"expression": script, "awaitPromise": True, "returnByValue": True}
        result = self.command("Runtime.evaluate", params)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def command(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=30))
            if message.get("id") == number:
                return dict(message["result"])

    def wait(self, condition: str, timeout_s: float = 120.0) -> None:
        """Until a JavaScript condition holds."""
        until_s = time.monotonic() + timeout_s
        while not self.run(condition):
            assert time.monotonic() < until_s, f"{condition}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)


@contextmanager
def open_page(url: str, folder: Path) -> Iterator[Page]:
    """The page at the URL. `folder` takes the browser's profile."""
    browser = next(filter(None, map(shutil.which, NAMES)))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
    process = subprocess.Popen(
        [browser, *flags, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        port_file = folder / "DevToolsActivePort"
        until_s = time.monotonic() + 30
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert time.monotonic() < until_s, "the browser does not start"
            time.sleep(0.05)
        port = port_file.read_text().split()[0]
        tab = httpx.put(f"http://127.0.0.1:{port}/json/new?{url}").json()
        with connect(tab["webSocketDebuggerUrl"], max_size=None) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        process.wait(10)
