"""A real browser for tests: the little of the WebDriver protocol (W3C) that they need."""

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


class Browser:
    """One page of a headless Chromium, as wide as a phone or a desk's screen."""

    def __init__(self, driver_url: str, profile: str) -> None:
        options = {"binary": CHROMIUM, "args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = _call(f"{driver_url}/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._url = f"{driver_url}/session/{session['sessionId']}"

    def open(self, path: Path, fragment: str = "") -> None:
        _call(f"{self._url}/url", {"url": "about:blank"})
        _call(f"{self._url}/url", {"url": path.resolve().as_uri() + fragment})

    def run(self, script: str) -> Any:
        """The value that the page's script returns."""
        return _call(f"{self._url}/execute/sync", {"script": script, "args": []})

    def type_into(self, selector: str, text: str) -> None:
        found = _call(f"{self._url}/element", {"using": "css selector", "value": selector})
        element = next(iter(found.values()))
        _call(f"{self._url}/element/{element}/value", {"text": text})

    def click(self, selector: str) -> None:
        found = _call(f"{self._url}/element", {"using": "css selector", "value": selector})
        _call(f"{self._url}/element/{next(iter(found.values()))}/click", {})

    def console(self) -> list[str]:
        """Errors that the page logged."""
        entries = _call(f"{self._url}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def view(self, width: int, height: int, *, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = self._devtools("Page.captureScreenshot", {"captureBeyondViewport": True})
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        _call(self._url, None, method="DELETE")

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return _call(f"{self._url}/goog/cdp/execute", {"cmd": command, "params": parameters})


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser that is gone afterwards, with its driver and its profile."""
    assert DRIVER is not None
    port = _free_port()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # A home of its own: nothing of the user's profile is read or written.
        environment = {**os.environ, "HOME": folder}
        driver = subprocess.Popen(
            [DRIVER, f"--port={port}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/status")
            browser = Browser(f"http://127.0.0.1:{port}", f"{folder}/profile")
            yield browser
            browser.close()
        finally:
            driver.terminate()
            driver.wait(timeout=20)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_for(url: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            _call(url, None)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _call(url: str, body: dict[str, Any] | None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as reply:
            return json.load(reply)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {error.read().decode()[:500]}") from error
