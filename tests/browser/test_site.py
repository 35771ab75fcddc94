"""The built book as a reader sees it: every page in headless Chromium, wide and narrow, light and dark.

`make test-book` builds the book and runs this file; `make unit` leaves it out, because it needs a browser. CHROMIUM
names the program where it is not on the PATH, BOOK the folder of the built book.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
BOOK = Path(os.environ.get("BOOK", ROOT / "build" / "book")).resolve()
PAGES = sorted(str(path.relative_to(BOOK)) for folder in (BOOK, BOOK / "api") for path in folder.glob("*.html"))
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), "")
VIEWS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
if not PAGES:
    pytest.exit(f"{BOOK}: no page of the book; run make book first", returncode=2)
# Parts of a page that end right of the window and lie in no box that scrolls: nobody can read them.
CUT = """() => {
    const inside = (e) => e.getBoundingClientRect().right <= innerWidth + 1;
    const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX) && inside(e);
    const reached = (e) => e && (scrolls(e) || reached(e.parentElement));
    return [...document.querySelectorAll("article *")].filter((e) => !inside(e) && !reached(e))
        .map((e) => e.outerHTML.slice(0, 80)).slice(0, 3);
}"""


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium: install it, or set CHROMIUM=<program>; no page was opened")
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # CI runs as root
        yield browser
        browser.close()


@pytest.fixture(scope="session", params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def tab(browser, request):
    """A tab of one width and colour scheme; `faults` collects console errors and requests that leave the disk."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.faults, page.scheme = [], scheme
    page.on("console", lambda said: said.type == "error" and page.faults.append(said.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("request", lambda sent: sent.url.startswith(("file:", "data:", "blob:")) or page.faults.append(sent.url))
    yield page
    page.close()


def opened(tab, name):
    tab.faults.clear()
    tab.goto((BOOK / name).as_uri())
    return tab


@pytest.mark.parametrize("name", PAGES)
def test_page_opens_without_error_request_or_sideways_scroll(tab, name):
    opened(tab, name)
    assert not tab.faults
    assert tab.evaluate("document.documentElement.dataset.theme") == tab.scheme
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab.evaluate(CUT)
    assert not tab.evaluate(CUT)
    assert not tab.evaluate("[...document.images].filter(image => !image.alt.trim()).map(image => image.src)")
    assert not tab.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(image => image.src)")


def test_explorer_answers_clicks_and_keys(tab):
    opened(tab, "explorer.html")
    answer, picker = tab.locator("#explorer-answer"), tab.get_by_label("Ask with a sentence, a report or a film")
    assert answer.locator("ol.films li").count() == 5
    tab.get_by_role("button", name="Film 3", exact=True).click()
    assert "Film 3. Truth:" in answer.inner_text()
    assert picker.input_value() == "film 2"
    assert answer.locator("ol").count() == 3
    for i in range(3):
        cosines = [float(text.split()[1]) for text in answer.locator("ol").nth(i).locator(".cosine").all_inner_texts()]
        assert len(cosines) == 5
        assert cosines == sorted(cosines, reverse=True)
    answer.locator("ol.texts button").first.press("Enter")      # a report asks
    assert "with this report" in answer.locator(".count").inner_text()
    before = answer.inner_text()
    picker.press("ArrowDown")
    assert answer.inner_text() != before
    assert not tab.faults


class Links(HTMLParser):
    """What a page links to, and which anchors and formulas it has."""

    def __init__(self, name):
        super().__init__()
        self.targets, self.anchors, self.formulas = [], set(), 0
        self.feed((BOOK / name).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {value for key in ("id", "name") if (value := found.get(key))}
        self.formulas += tag == "math"
        self.targets += [value for key in ("href", "src") if (value := found.get(key))]


@pytest.fixture(scope="session")
def links():
    return {name: Links(name) for name in PAGES}


@pytest.mark.parametrize("name", PAGES)
def test_internal_links_and_anchors_resolve(links, name):
    for target in links[name].targets:
        parts = urlsplit(target)
        if not parts.scheme and not parts.netloc:
            page, anchor = name, unquote(parts.fragment)
            if parts.path:
                page = os.path.normpath(Path(name).parent / unquote(parts.path))
            assert (BOOK / page).is_file(), target
            assert not anchor or page not in links or anchor in links[page].anchors, target


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_every_formula_of_the_source_is_drawn(links, path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    plain = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    written = re.findall(r"\$\$.+?\$\$|(?<![\\$])\$[^$]+?\$", plain, re.S)
    assert links[f"{path.stem}.html"].formulas >= len(written)
