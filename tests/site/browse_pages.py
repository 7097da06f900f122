"""Every page of the built site, in a browser: `make browser`.

The site is the folder `site/`; screenshots go to `outputs/site/`. The browser is the chromium of
the system, or the one of `playwright install chromium`.
"""

import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
SCREENSHOTS = ROOT / "outputs" / "site"
PAGES = sorted(
    f"{path.parent.relative_to(SITE)}/".removeprefix("./") for path in SITE.rglob("index.html")
)
WIDTHS = {1440: 900, 390: 844}
HIGHEST_PICTURE = 6000
PATIENCE = 180_000  # Milliseconds: the machine may be busy.

# What sticks out of the window, without a box around it that scrolls.
CUT_OFF = """() => {
    const scrolls = (element) => element && element.tagName !== "BODY"
        && (["auto", "scroll"].includes(getComputedStyle(element).overflowX)
            || scrolls(element.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter((element) => element.checkVisibility()
            && element.getBoundingClientRect().right > innerWidth + 1
            && !element.closest(".katex-mathml") && !scrolls(element))
        .map((element) => element.outerHTML.slice(0, 120));
}"""

# Words of code that stand on two lines.
BROKEN_WORDS = """() => {
    const broken = [];
    for (const code of document.querySelectorAll("article code")) {
        const texts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
            for (const word of texts.currentNode.data.matchAll(/\\w+/g)) {
                const range = document.createRange();
                range.setStart(texts.currentNode, word.index);
                range.setEnd(texts.currentNode, word.index + word[0].length);
                const tops = [...range.getClientRects()].map((box) => Math.round(box.top));
                if (new Set(tops).size > 1) broken.push(word[0]);
            }
        }
    }
    return broken;
}"""

RAW_FORMULAS = """() => [...document.querySelectorAll(".arithmatex")]
    .filter((formula) => !formula.querySelector(".katex-html")
        || formula.querySelector(".katex-error"))
    .map((formula) => formula.textContent.slice(0, 80))"""

# Whether one of the first results of the search leads there.
AMONG_THE_FIRST = """found => [...document.querySelectorAll(".md-search-result__link")]
    .slice(0, 10).some((link) => link.href.includes(found))"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Say nothing: what fails is told by the tests."""


@pytest.fixture(scope="module")
def address():
    """Where the site is served."""
    assert PAGES, f"no pages in {SITE}: run `make docs` first"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=SITE))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        yield browser
        browser.close()


class _Visit:
    """A page in a window, and what went wrong while it was loaded."""

    def __init__(self, page: Page, address: str):
        self.page, self.address, self.problems = page, address, []
        page.on("console", lambda message: message.type == "error" and self.note(message.text))
        page.on("pageerror", lambda error: self.note(str(error)))
        page.on("requestfailed", lambda request: self.note(f"failed: {request.url}"))
        page.on("response", lambda response: response.ok or self.note(f"failed: {response.url}"))
        page.on("request", self.stays_here)

    def note(self, problem):
        self.problems.append(problem)

    def stays_here(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.note(f"asks another server: {request.url}")

    def to(self, page):
        self.page.goto(f"{self.address}/{page}")
        self.page.wait_for_load_state("networkidle")  # On a busy machine it comes before the load.


@pytest.fixture(params=WIDTHS)
def visit(request, browser, address):
    width = request.param
    page = browser.new_page(viewport={"width": width, "height": WIDTHS[width]})
    page.set_default_timeout(PATIENCE)
    yield _Visit(page, address)
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_page(visit, name):
    visit.to(name)
    page, width = visit.page, visit.page.viewport_size["width"]
    _photograph(page, f"{width}/{name.rstrip('/').replace('/', '-') or 'start'}.png")
    assert visit.problems == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate(RAW_FORMULAS) == []
    assert page.evaluate(BROKEN_WORDS) == []
    assert page.locator("article h1").count() == 1


def _photograph(page, name):
    path = SCREENSHOTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    size = page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": size[0], "height": min(size[1], HIGHEST_PICTURE)}
    page.screenshot(path=path, full_page=True, clip=clip)


def test_formulas_are_among_the_pages(visit):
    visit.to("layers/")
    assert visit.page.locator(".arithmatex .katex-html").count() > 20


@pytest.mark.parametrize(
    ("words", "found"),
    [("train.py", "training/"), ("bits per dim", "metrics/"), ("AttentionCoupling", "layers/")],
)
def test_search_finds(visit, words, found):
    visit.to("")
    if visit.page.viewport_size["width"] < 1000:  # There the field is behind a symbol.
        visit.page.locator("label[for=__search].md-header__button").click()
    visit.page.locator(".md-search__input").click()
    visit.page.keyboard.type(words, delay=20)
    visit.page.wait_for_function(AMONG_THE_FIRST, arg=found)
    _photograph(visit.page, f"{visit.page.viewport_size['width']}/search {words}.png")
    assert visit.problems == []


def test_dark(browser, address):
    page = browser.new_page(color_scheme="dark", viewport={"width": 1440, "height": 900})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address}/layers/")
    _photograph(page, "1440/layers, dark.png")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.close()
    red, green, blue = (int(part) for part in colour.strip("rgb()").split(","))
    assert max(red, green, blue) < 100


def test_the_notebook_can_be_downloaded(visit):
    visit.to("examples/normflows_glow/")
    with visit.page.expect_download() as download:
        visit.page.get_by_text("Download this notebook").click()
    assert Path(download.value.path()).read_bytes().startswith(b"{")
