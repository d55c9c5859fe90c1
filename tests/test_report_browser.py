"""The report in a real browser: it draws, answers hover and zoom, logs no error, asks for nothing.

Skipped where no Chromium is installed (Debian: apt install chromium).
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from headless_browser import SETTLED, Browser, Page, headless_browser, installed_browser
from traced_runs import cost, kernels, measured, simulated

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.run_folder import create_run
from aieflow.runtime.timeline import Recorded, timeline
from aieflow.tools.report import report_text

MODEL = ModelConfig(vocab_size=19, seq_len=8, layers=1, heads=2, channels=8)
METRICS = "".join(
    f'{{"training_step": {step}, "loss": {3 - step / 10}, "seconds": 0.1, "tokens_per_s": 160}}\n'
    for step in range(1, 7)
)
WIDE, PHONE = (1280, 900), (390, 844)
BROWSER = installed_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt install chromium")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert BROWSER is not None
    with headless_browser(BROWSER, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def report_of(recorded: list[Recorded], folder: Path) -> Path:
    run = create_run(folder / "run", RunConfig(model=MODEL, seq_len=8, batch_size=2, steps=6))
    run.metrics_file.write_text(METRICS)
    file = folder / "report.html"
    file.write_text(report_text(run, timeline(recorded, cost(), kernels())))
    return file


@pytest.fixture(scope="module", params=["measured", "simulated"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recorded = measured() if request.param == "measured" else simulated()
    return report_of(recorded, tmp_path_factory.mktemp(request.param))


def absent_colours(page: Page) -> list[str]:
    """Those of the Gantt's legend in which nothing is drawn."""
    found = page.value(
        "(() => { const c = document.getElementById('gantt');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "const drawn = new Set();"
        "for (let i = 0; i < d.length; i += 4) drawn.add(`rgb(${d[i]}, ${d[i + 1]}, ${d[i + 2]})`);"
        "return [...document.querySelectorAll('#gantt-legend i')]"
        ".map((dot) => getComputedStyle(dot).backgroundColor).filter((one) => !drawn.has(one));"
        "})()"
    )
    assert isinstance(found, list)
    return found


def outside(page: Page) -> object:
    """Texts of a curve or scatter that do not lie inside of its drawing."""
    return page.value(
        "[...document.querySelectorAll('svg text')].filter((text) => {"
        "const a = text.getBoundingClientRect();"
        "const b = text.closest('svg').getBoundingClientRect();"
        "return a.left < b.left - 1 || a.right > b.right + 1; })"
        ".map((text) => text.textContent)"
    )


def tip(page: Page) -> str:
    """What the page says of what the pointer is at; nothing where it says nothing."""
    return str(page.value("document.getElementById('tip').hidden ? '' : tip.textContent"))


def view(page: Page) -> tuple[float, float]:
    """Where the Gantt begins and how wide it is, in nanoseconds."""
    start, width = map(float, page.value("document.getElementById('gantt').dataset.view").split())
    return start, width


def pointed_at(page: Page, selector: str) -> tuple[float, float, str]:
    """A place in an element of which the page has something to say, and what."""
    left, top, width, height = page.box(selector)
    for y in range(int(top) + 8, int(top + height), 11):
        for x in range(int(left) + 4, int(left + width), 24):
            page.mouse("mouseMoved", x, y)
            if said := tip(page):
                page.value(SETTLED)
                return x, y, said
    raise AssertionError(f"nothing is said of anything in {selector}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, PHONE])
def test_it_is_drawn_without_a_fault_or_a_request(
    browser: Browser, report: Path, scheme: str, size: tuple[int, int]
) -> None:
    with browser.page() as page:
        page.show(report, *size, scheme)
        assert page.requests == [report.as_uri()]
        assert page.value("document.documentElement.scrollWidth") <= size[0]
        # Where all slices of a family are narrower than a pixel, its colour is mixed with others.
        named = page.value("document.querySelectorAll('#gantt-legend i').length")
        assert named - len(absent_colours(page)) >= 3
        assert page.value("document.querySelectorAll('svg path, svg circle').length") > 5
        assert outside(page) == []
        ink, paper = page.value(
            "[getComputedStyle(document.body)].map((s) => [s.color, s.backgroundColor])[0]"
        )
        red_of_ink, red_of_paper = (int(rgb[4:].split(",")[0]) for rgb in (ink, paper))
        bright, dark = sorted((red_of_ink, red_of_paper), reverse=True)
        assert bright > 200 > 50 > dark
        assert (red_of_paper == bright) == (scheme == "light")
        assert page.faults == []


@pytest.mark.parametrize("report", ["simulated"], indirect=True)
def test_what_a_tick_says_at_the_very_edge_is_inside(browser: Browser, report: Path) -> None:
    with browser.page() as page:
        page.show(report, *WIDE)
        said = page.value(
            "(() => { curves({ id: 'use', x: 'at', time: true,"
            " series: [{ name: 'all', colour: 1, points: [[0, 0], [2e6, 1]] }] });"
            "return [...document.querySelectorAll('#use text')].map((each) => each.textContent);"
            "})()"
        )
        assert "2 ms" in said
        assert outside(page) == []


@pytest.mark.parametrize("report", ["simulated"], indirect=True)
def test_pointing_says_what_a_slice_is(browser: Browser, report: Path) -> None:
    with browser.page() as page:
        page.show(report, *WIDE)
        before = page.value("document.getElementById('gantt').toDataURL()")
        _, y, said = pointed_at(page, "#gantt")
        assert page.value("document.getElementById('gantt').toDataURL()") != before  # it is framed
        first, second, *_ = said.splitlines()
        names = page.value("data.trace.names")
        assert first.split(" (")[0] in names
        assert any(f" on {lane}" in second for lane in page.value("data.trace.lanes"))
        assert "model: " in said
        page.mouse("mouseMoved", 2, y)  # in the margin
        assert tip(page) == ""
        for selector, word in (
            ("#loss", "training loss: "),
            ("#use", "at "),
            ("#model circle", ""),
        ):
            assert word in pointed_at(page, selector)[2]
        assert page.faults == []


@pytest.mark.parametrize("report", ["simulated"], indirect=True)
def test_the_timeline_zooms_moves_and_fits(browser: Browser, report: Path) -> None:
    with browser.page() as page:
        page.show(report, *WIDE)
        start, wide = view(page)
        assert start == 0
        page.value("document.getElementById('gantt-in').click()")
        left, top, width, height = page.box("#gantt")
        assert view(page)[1] == pytest.approx(wide / 2)
        x, y = left + width / 2, top + height / 2
        page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-300, modifiers=2)  # with Ctrl
        page.value(SETTLED)
        zoomed, narrow = view(page)
        assert narrow < 0.45 * wide
        page.mouse("mousePressed", x, y, button="left", buttons=1, clickCount=1)
        page.mouse("mouseMoved", x - 100, y, button="left", buttons=1)
        page.mouse("mouseReleased", x - 100, y, button="left", clickCount=1)
        page.value(SETTLED)
        moved, same = view(page)
        assert (moved > zoomed, same) == (True, narrow)
        page.value("document.getElementById('gantt').focus()")
        page.call("Input.dispatchKeyEvent", type="keyDown", key="0", text="0")
        page.box("#gantt")
        assert view(page) == (0, wide)
        number = page.value("document.getElementById('run').options[0].value")
        page.value(
            f"(() => {{ const s = document.getElementById('run'); s.value = '{number}';"
            "s.onchange(); })()"
        )
        page.box("#gantt")
        assert page.value("data.trace.runs[0].wall") == view(page)[1]
        assert page.faults == []


@pytest.mark.parametrize("report", ["simulated"], indirect=True)
def test_a_fault_and_a_request_are_seen(browser: Browser, report: Path, tmp_path: Path) -> None:
    """What the tests above rely on."""
    bad = tmp_path / "bad.html"
    text = report.read_text().replace("data.charts.forEach", "absent.charts.forEach")
    bad.write_text(text)
    with browser.page() as page:
        page.show(bad, *WIDE)
        assert any("absent is not defined" in fault for fault in page.faults)
    bad.write_text(report.read_text().replace("<h1>", '<img src="http://127.0.0.1:9/x.png"><h1>'))
    with browser.page() as page:
        page.show(bad, *WIDE)
        assert any("Content Security Policy" in fault for fault in page.faults)
    loose = bad.read_text().replace("default-src 'none'", "default-src *")
    bad.write_text(loose)
    with browser.page() as page:
        page.show(bad, *WIDE)
        assert "http://127.0.0.1:9/x.png" in page.requests
