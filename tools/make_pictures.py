"""Make the pictures of the documents anew: the live view, and a report.

    python -m aieflow.tools.make_pictures

writes `docs/pictures/live.svg` (what `aieflow profile --live` shows of a run of its own on this
computer, after some seconds), `live-npu.svg` (the same with a described machine's NPU, emulated)
and, where a Chromium is installed, `report.png` of a short traced run. All figures in them are of
the computer and the moment; a calibrated computer's live view has predictions, too.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

import psutil
from rich.console import Console

from aieflow.ops.errors import InputError
from aieflow.tools.console import OUT
from aieflow.tools.live import COMMAND, mini_run
from aieflow.tools.live_view import Look, Process, picture
from aieflow.tools.machine_options import Settings

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
SECONDS = 10.0  # of watching, so that shares and medians have settled
TICK_S = 0.9  # after a whole second, so that lanes are seen at work
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FONTS = re.compile(
    r"@font-face \{.*?\}", re.DOTALL
)  # rich's, from a network: readers have their own
SHOWN: tuple[tuple[str, Settings, str], ...] = (  # file, options, title
    ("live", {}, "aieflow profile --live"),
    ("live-npu", {"machine": "phoenix"}, "aieflow profile --live --machine phoenix"),
)
SHORT_RUN = ("--steps", "60", "--eval-every", "20", "--no-sample")


def live_picture(given: Settings, title: str, width: int, height: int) -> str:
    """The live view of a run of its own, as SVG; raises InputError where nothing was recorded."""
    with mini_run(given) as link:
        link.poll_until(time.monotonic() + SECONDS)
        watched = link.watched
        if watched.figures() is None or watched.pid is None:
            raise InputError(f"{title}: no training step was recorded in {SECONDS:.0f} s")
        process = psutil.Process(watched.pid)
        process.cpu_percent()
        link.poll_until(time.monotonic() + TICK_S)
        seen = Process(process.cpu_percent(), process.memory_info().rss)
        lines = picture(watched, seen, Look(), width, height)
    console = Console(
        file=StringIO(), record=True, width=width, force_terminal=True, color_system="standard"
    )
    for line in lines:
        console.print(line, crop=True)
    return FONTS.sub("", console.export_svg(title=title, unique_id="live"))


def report_picture(browser: str, file: Path) -> None:
    """The upper part of the report of a short traced run."""
    with tempfile.TemporaryDirectory(prefix="aieflow-") as folder:
        run = Path(folder) / "gpt2-mini"
        trace = Path(folder) / "trace.json"
        for words in (
            ("train", "gpt2", "--out", run, "--trace", trace, *SHORT_RUN),
            ("report", run),
        ):
            subprocess.run([*COMMAND, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--window-size=1200,780", f"--screenshot={file}"),
                (run / "report.html").as_uri(),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )


def main() -> int:
    """Make them."""
    FOLDER.mkdir(exist_ok=True)
    made: list[Path] = []
    for name, given, title in SHOWN:
        file = FOLDER / f"{name}.svg"
        file.write_text(live_picture(given, title, 100, 28), encoding="utf-8")
        made.append(file)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is not None:
        report_picture(browser, FOLDER / "report.png")
        made.append(FOLDER / "report.png")
    for file in made:
        OUT.print(f"{file.stat().st_size / 1e3:6.1f} kB  {file}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
