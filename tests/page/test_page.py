"""The dashboard's page as people see it: in a headless Chromium."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from selenium.webdriver import Chrome

from search.study import Study
from storage.database import Database
from tests.browser import chromium, complaints
from tests.dashboards import VALUES, make_study, serving
from tests.proxy import reverse_proxy
from tests.waiting import wait_until

PASSWORD = "not-to-be-seen"
PLOTTED = """
    const plots = [...document.querySelectorAll(".js-plotly-plot")];
    const traces = plots.flatMap((plot) => plot.id === arguments[0] ? plot.data : []);
    return traces.filter((trace) => trace.mode === "markers").flatMap((trace) => [...trace.y]);
"""
"""Returns the values that a plot shows as points."""


@pytest.fixture
def study(database: Database) -> Study:
    """A study of complete trials."""
    return make_study(database)


@pytest.fixture(scope="module")
def shared_browser() -> Iterator[Chrome]:
    """One Chromium for all of this file's tests."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Chrome) -> Chrome:
    """A Chromium that shows nothing and has complained of nothing yet."""
    shared_browser.get("about:blank")
    complaints(shared_browser)
    return shared_browser


@pytest.fixture(params=["direct", "prefix", "prefix-stripped", "password"])
def url(
    request: pytest.FixtureRequest, tmp_path: Path, database_url: str, study: Study
) -> Iterator[str]:
    """The dashboard's address: its own, below a reverse proxy's path, or with the password."""
    with ExitStack() as stack:
        if request.param == "direct":
            yield stack.enter_context(serving(tmp_path, database_url))["url"]
        elif request.param == "password":
            environ = {"MELSEARCH_DASHBOARD_PASSWORD": PASSWORD}
            said = stack.enter_context(serving(tmp_path, database_url, environ=environ))
            yield said["url"]
        else:
            said = stack.enter_context(serving(tmp_path, database_url, "--prefix", "/lab/optuna"))
            strips = request.param == "prefix-stripped"
            yield stack.enter_context(reverse_proxy(said["url"], "/lab/optuna", strips=strips))


def log_in(browser: Chrome, url: str) -> None:
    """Let the browser know the password, as if somebody had typed it in.

    Not at a page: Chromium lets no script fetch anything while the address has a password in it.
    """
    browser.get(url.replace("://", f"://me:{PASSWORD}@", 1) + "favicon.ico")
    complaints(browser)


def text_of(browser: Chrome) -> str:
    """Return all that the page says."""
    return str(browser.execute_script("return document.body.innerText"))


def test_page_shows_studies_history_and_trials(browser: Chrome, url: str, study: Study) -> None:
    """A click leads from the list to the study, an address to a trial, and nothing fails."""
    log_in(browser, url)
    browser.get(url)
    wait_until(lambda: "shown" in text_of(browser))
    browser.find_element("partial link text", "shown").click()
    points = wait_until(lambda: browser.execute_script(PLOTTED, "plot-history"))
    assert points == list(VALUES)
    assert browser.find_elements("css selector", "#plot-history svg.main-svg")
    if path := os.environ.get("MELSEARCH_SCREENSHOT"):
        browser.save_screenshot(path)

    browser.refresh()  # a client-side address that the server has to know as well
    wait_until(lambda: browser.execute_script(PLOTTED, "plot-history") == list(VALUES))

    browser.get(f"{browser.current_url}/trials?numbers=3")
    wait_until(lambda: "Trial 3 (" in text_of(browser))
    shown = text_of(browser)
    assert all(f"{name} {value}" in shown for name, value in study.trials()[3].params.items())
    assert complaints(browser) == []


def test_every_page_keeps_the_rules_that_the_headers_set(
    browser: Chrome, tmp_path: Path, database_url: str, study: Study
) -> None:
    """No page, WebGL plot included, asks for more than the content security policy allows."""
    with serving(tmp_path, database_url) as said:
        for page, selector in {
            "studies/1/analytics": "#plot-slice svg.main-svg",
            "studies/1/smartSelection": "#plot-parallel-coordinate canvas.gl-canvas",
            "compare-studies?ids=1": "svg.main-svg",
        }.items():
            browser.get(f"{said['url']}dashboard/{page}")
            wait_until(lambda: browser.find_elements("css selector", selector))  # noqa: B023
            assert "WebGL is not supported" not in text_of(browser)
        assert complaints(browser) == []


def test_password_is_asked_for(
    browser: Chrome, tmp_path: Path, database_url: str, study: Study
) -> None:
    """Without it the page shows nothing of the study."""
    environ = {"MELSEARCH_DASHBOARD_PASSWORD": PASSWORD}
    with serving(tmp_path, database_url, environ=environ) as said:
        browser.get(said["url"].replace("http://", "http://me:wrong@"))
        wait_until(lambda: any("401" in text for text in complaints(browser)))
        assert "shown" not in text_of(browser)
        assert not browser.execute_script(PLOTTED, "plot-history")
