"""A Chromium without a window, driven over two pipes by its DevTools protocol, for tests.

It asks for no package: messages are JSON, ended by a zero byte, on the process's descriptors 3
(to it) and 4 (from it): https://chromedevtools.github.io/devtools-protocol/.
"""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LIMIT_S = 60.0
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
    "--disable-dev-shm-usage",  # containers have 64 MB of it, or less
)
SETTLED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"


def installed_browser() -> str | None:
    """The path of a browser that this can drive; None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One page; what it logs, throws and asks for is kept."""

    def __init__(self, browser: "Browser", session: str) -> None:
        self._browser, self._session = browser, session
        self.faults: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> Any:  # noqa: ANN401  # JSON
        """The result of a command; raises AssertionError where it fails."""
        return self._browser.call(method, parameters, self._session)

    def show(self, file: Path, width: int, height: int, scheme: str = "light") -> None:
        """Open a file at a size, in light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=file.absolute().as_uri())
        self._browser.until(lambda: self.value("document.readyState") == "complete")
        self.value(SETTLED)

    def value(self, expression: str) -> Any:  # noqa: ANN401  # JSON
        """What JavaScript says, as JSON has it; raises AssertionError for an exception."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, **more: object) -> None:
        """A mouse event (`mouseMoved`, `mousePressed`, `mouseReleased`, `mouseWheel`)."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element, brought into sight."""
        found = self.value(
            f"(() => {{ const e = document.querySelector('{selector}');"
            "e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]; })()"
        )
        self.value(SETTLED)
        left, top, width, height = found
        return left, top, width, height

    def take(self, message: Any) -> None:  # noqa: ANN401  # JSON
        """Note an event of this page."""
        content = message["params"]
        match message["method"]:
            case "Runtime.exceptionThrown":
                details = content["exceptionDetails"]
                self.faults.append(details.get("exception", details).get("description", "thrown"))
            case "Runtime.consoleAPICalled":
                self.faults.append(str(content["args"]))
            case "Log.entryAdded":
                self.faults.append(content["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(content["request"]["url"])


class Browser:
    """The process; answers come in order, events between them go to their page."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._rest, self._number = b"", 0
        self._pages: dict[str, Page] = {}
        self._answers: dict[int, Any] = {}

    @contextmanager
    def page(self) -> Iterator[Page]:
        """A new page, closed at the end."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = {"targetId": target, "flatten": True}
        session = self.call("Target.attachToTarget", attached)["sessionId"]
        page = self._pages[session] = Page(self, session)
        yield page
        self.call("Target.closeTarget", {"targetId": target})

    def call(self, method: str, parameters: object, session: str | None = None) -> Any:  # noqa: ANN401  # JSON
        """The result of a command; raises AssertionError where it fails."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        self.until(lambda: number in self._answers or self._listens_in_vain())
        answer = self._answers.pop(number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def until(self, is_so: Callable[[], bool]) -> None:
        """Ask until something is so; raises AssertionError where it does not come about."""
        deadline = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline, "the browser does not answer"

    def _listens_in_vain(self) -> bool:
        """Take what was said; False always: whether it is an answer is for the caller to see."""
        if not select.select([self._read], [], [], 1.0)[0]:
            return False
        part = os.read(self._read, 1 << 16)
        assert part, "the browser has ended"
        *messages, self._rest = (self._rest + part).split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            elif message.get("sessionId") in self._pages:
                self._pages[message["sessionId"]].take(message)
        return False


@contextmanager
def headless_browser(path: str, folder: Path) -> Iterator[Browser]:
    """A browser that keeps what it writes in `folder`, and ends with the block."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()

    def place() -> None:  # both may be 3 or 4 themselves: first out of the way
        own_read, own_write = os.dup(to_read), os.dup(from_write)
        high = (os.dup2(own_read, 103), os.dup2(own_write, 104))
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    process = subprocess.Popen(
        [path, *OPTIONS, f"--user-data-dir={folder}"],
        env={
            **os.environ,
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder),
        },  # none of the user's
        preexec_fn=place,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    browser = Browser(to_write, from_read)
    try:
        yield browser
    finally:
        with suppress(OSError, AssertionError):
            browser.call("Browser.close", {})
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        os.close(to_write)
        os.close(from_read)
