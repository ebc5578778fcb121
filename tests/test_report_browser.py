"""The report as a real browser shows it, without a display and without a network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shell import done, walk_table

from chmm_pyro.environments import published_room

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SYMBOLS = ["<script>document.title = 'hacked'</script>", "<img src='http://x.test/'>", "a&b", "$_^"]


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(NAMES)} is on the path")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    table = walk_table(published_room("rectangular_room"), SYMBOLS, 10_000)
    table.to_csv(folder / "walk.csv", index=False)
    done("fit", folder / "walk.csv", "--clones", 20, "--iters", 40, "--held-out", 0.1)
    done("report", folder / "walk.run")
    return folder / "walk.run" / "report.html"


@pytest.mark.slow
def test_the_report_in_a_browser(browser, report: Path, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri(), wait_until="load")

    assert said == []  # neither errors nor warnings, the content policy's included
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.title().startswith("walk.run: a map of ")
    assert page.locator("h1").inner_text() == page.title()
    shown = page.locator("img").evaluate_all(
        "images => images.map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.width, i.alt])"
    )
    assert len(shown) == 4
    for complete, width, height, box, caption in shown:
        assert complete and width > 1000 and height > 500
        assert 0 < box <= 1000 and caption
    headings = page.locator("h2").all_inner_texts()
    assert headings[:4] == ["The map", "The map where it belongs", "Training", "Use of states"]
    symbols = page.locator("table", has_text="clones").locator("tbody td:first-child")
    assert sorted(set(symbols.all_inner_texts()) & set(SYMBOLS)) == sorted(SYMBOLS)
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 0  # nothing sticks out
    page.set_viewport_size({"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    screenshot = tmp_path / "report.png"
    page.screenshot(path=screenshot, full_page=True)
    assert screenshot.stat().st_size > 50_000


@pytest.mark.slow
def test_the_policy_of_the_page_forbids_scripts_and_the_network(
    browser, report: Path, tmp_path: Path
) -> None:
    """If an unescaped label ever got into the page, it could do nothing."""
    html = report.read_text().replace(
        "</h1>", "</h1><script>document.title = 'hacked'</script><img src='http://x.test/i.png'>", 1
    )
    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text(html)
    page = browser.new_page()
    answered: list[str] = []
    page.on("response", lambda response: answered.append(response.url))
    page.goto(spoiled.as_uri(), wait_until="load")
    assert page.title().startswith("walk.run: a map of ")
    assert not [url for url in answered if url.startswith("http")]
