"""Look at an exported page as somebody does who has a browser.

`PAGE_SHOTS=DIRECTORY` keeps pictures of the pages.
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastnca.commands.play import make_server

DESKTOP = {"width": 1100, "height": 900}
PATIENCE = 120_000  # milliseconds


class Visit:
    """A page that somebody looks at.

    Attributes:
        page: playwright's page.
        lines: what the console and uncaught errors said.
        requests: addresses that were asked for.
    """

    def __init__(self, context: Any, html: str, query: str, script: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.lines: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.lines.append(message.text))
        self.page.on("pageerror", lambda error: self.lines.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        if script:
            self.page.add_init_script(script)
        with make_server(html) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            self.address = f"http://127.0.0.1:{server.server_port}/{query}"
            try:
                self.page.goto(self.address)
            finally:
                server.shutdown()
                thread.join()
        self.wait_for("document.querySelector('#picture').ariaLabel !== 'Loading'")

    def number(self, name: str) -> int:
        return int(self.page.text_content(f"#{name}").replace(",", ""))

    def words(self) -> str:
        return str(self.page.get_attribute("#picture", "aria-label"))

    def wait_for(self, condition: str) -> None:
        """Wait until a condition holds in the page, where `number(id)` reads a number.

        Playwright's own way evaluates text in the page, which the page's policy forbids.
        """
        number = "const number = (id) => Number(document.getElementById(id).textContent"
        body = f"() => {{ {number}.replaceAll(',', '')); return {condition}; }}"
        end = time.monotonic() + PATIENCE / 1000
        while not self.page.evaluate(body):
            assert time.monotonic() < end, f"waited too long for {condition}"
            self.page.wait_for_timeout(20)

    def settle(self) -> int:
        """Wait until what is counted is what is shown; return the count."""
        for _ in range(2):
            self.page.evaluate("() => new Promise(requestAnimationFrame)")
        self.wait_for("document.getElementById('picture').ariaBusy === 'false'")
        return self.number("count")

    def grow(self, steps: int) -> int:
        """Run `steps` more steps, as fast as it goes, and pause; return the number of cells."""
        self.page.locator("#speed").fill("9")
        self.page.click("#run")
        self.wait_for(f"number('steps') >= {self.number('steps') + steps}")
        self.page.click("#run")
        return self.settle()

    def place(self, row: float, column: float) -> tuple[float, float]:
        """Return where a part of the picture is, 0 to 1 in both directions."""
        self.page.locator("#picture").scroll_into_view_if_needed()
        box = self.page.locator("#picture").bounding_box()
        return box["x"] + column * box["width"], box["y"] + row * box["height"]

    def drag(self, *places: tuple[float, float]) -> None:
        """Drag with the mouse."""
        first, *others = [self.place(*place) for place in places]
        self.page.mouse.move(*first)
        self.page.mouse.down()
        for x, y in others:
            self.page.mouse.move(x, y, steps=5)
        self.page.mouse.up()

    def touch(self, *places: tuple[float, float]) -> None:
        """Drag with a finger."""
        session = self.page.context.new_cdp_session(self.page)
        kinds = ["touchStart"] + ["touchMove"] * (len(places) - 1)
        for kind, place in zip(kinds, places, strict=True):
            x, y = self.place(*place)
            event = {"type": kind, "touchPoints": [{"x": x, "y": y}]}
            session.send("Input.dispatchTouchEvent", event)
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def colour(self, selector: str) -> list[int]:
        found = self.page.evaluate(
            "(s) => getComputedStyle(document.querySelector(s)).backgroundColor", selector
        )
        return [int(part) for part in re.findall(r"\d+", found)[:3]]

    def shoot(self, name: str) -> None:
        """Keep a picture, if somebody wants some."""
        if directory := os.environ.get("PAGE_SHOTS"):
            self.page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)

    def check(self) -> None:
        """Check that nothing was complained of, nothing asked for, and nothing is too wide."""
        assert self.lines == []
        assert self.requests == [self.address]
        assert self.page.evaluate(
            "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        )


@contextmanager
def visit(
    browser: Any, html: str, query: str = "", script: str = "", **options: Any
) -> Iterator[Visit]:
    """Look at a page; the server that it came from is gone by then."""
    options = {"viewport": DESKTOP, "reduced_motion": "reduce", **options}
    context = browser.new_context(**options)
    try:
        yield Visit(context, html, query, script)
    finally:
        context.close()
