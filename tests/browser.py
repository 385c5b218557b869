"""A headless Chromium for tests, and what it complained about."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-quic",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader",  # WebGL without a GPU
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-proxy-server", "--window-size=1400,1000",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Chrome]:
    """Yield a Chromium with a fresh profile, which downloads nothing of its own."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary and driver, (
        "this test needs Chromium: apt-get install --no-install-recommends chromium chromium-driver"
    )
    os.environ["SE_OFFLINE"] = "true"
    with tempfile.TemporaryDirectory(prefix="melsearch-test-", ignore_cleanup_errors=True) as home:
        options = ChromeOptions()
        options.binary_location = binary
        for flag in (*_FLAGS, f"--user-data-dir={home}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = Chrome(options=options, service=Service(driver))
        try:
            yield browser
        finally:
            browser.quit()


def complaints(browser: Chrome) -> list[str]:
    """Return what went wrong since the last call: console errors and requests that failed."""
    console = [entry["message"] for entry in browser.get_log("browser") if _is_error(entry)]
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return console + [text for event in events if (text := _failure(event))]


def _is_error(entry: dict[str, Any]) -> bool:
    return str(entry["level"]) in ("SEVERE", "WARNING")


def _failure(event: dict[str, Any]) -> str:
    parameters = event["params"]
    if event["method"] == "Network.loadingFailed" and not parameters.get("canceled"):
        return f"a request failed: {parameters['errorText']}"
    if event["method"] == "Network.responseReceived":
        response = parameters["response"]
        if response["status"] >= 400:
            return f"{response['status']}: {response['url']}"
    return ""
