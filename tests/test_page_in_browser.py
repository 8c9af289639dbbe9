"""Exported pages in Chromium: both paths compute what Python does, and people can use them.

`PAGE_SHOTS=DIRECTORY` keeps pictures of the pages.
"""

import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fastnca.commands.play import make_server
from fastnca.pictures import to_pixels
from fastnca.pictures.render import seed_of, trained_size, visible
from tests.browser import (
    CASE_STEPS,
    CASES,
    NO_WEBGL,
    SOFTWARE_WEBGL,
    case_model,
    case_state,
    check_masks,
    dots,
    largest_difference,
    lizard,
    mask_calls,
    page_of,
    run_in_browser,
    small,
    start_playwright,
)
from tests.one_thread import one_thread  # noqa: F401 - by being imported

DESKTOP = {"width": 1100, "height": 900}
PHONE = {"width": 360, "height": 740}
PATHS = ("javascript", "webgl")
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def launch() -> Iterator[Any]:
    """What starts a Chromium."""
    with start_playwright() as start:
        yield start


@pytest.fixture(scope="module")
def chromium(launch: Any) -> Any:
    """A Chromium whose WebGL computes on the processor."""
    return launch(*SOFTWARE_WEBGL)


@cache
def lizard_page() -> str:
    return page_of(lizard(), "lizard")


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


@pytest.mark.parametrize("path", PATHS)
def test_masks_are_those_of_python(chromium, path):
    with visit(chromium, lizard_page()) as seen:
        check_masks(run_in_browser(seen.page, mask_calls(path)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("make", [lizard, dots, small])
def test_grown_models_are_those_of_python(chromium, make, path):
    model = make()
    with visit(chromium, page_of(model)) as seen:
        (found,) = run_in_browser(seen.page, [{"method": "run", "path": path, "steps": 200}])
    difference = largest_difference(model, found, 200)
    print(f"{path} in Chromium, {make.__name__}, 200 steps: {difference:.2g}")
    assert difference < 1e-3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_are_those_of_python(chromium, case):
    model, state = case_model(case), case_state(case)
    numbers = state.flatten().tolist()
    call = {"method": "run", "steps": CASE_STEPS, "state": numbers}
    with visit(chromium, page_of(model), "?path=js") as seen:
        both = run_in_browser(seen.page, [{**call, "path": path} for path in PATHS])
    for path, found in zip(PATHS, both, strict=True):
        difference = largest_difference(model, found, CASE_STEPS, state)
        print(f"{path} in Chromium, {case.name}: {difference:.2g}")
        assert difference < 1e-4


def test_it_grows_is_damaged_and_heals(chromium):
    with visit(chromium, lizard_page()) as seen:
        assert seen.page.text_content("#why").startswith("WebGL 2 computes this page, because")
        assert seen.settle() == 9
        whole = seen.grow(150)
        assert whole > 500
        seen.shoot("1100-grown")
        seen.drag((0.3, 0.3), (0.5, 0.5), (0.7, 0.6))
        damaged = seen.settle()
        assert damaged < 0.8 * whole
        assert f"{damaged} living cells on a grid of 48 by 48" in seen.words()
        assert seen.words() in seen.page.text_content("#news")
        seen.shoot("1100-damaged")
        assert seen.grow(200) > 1.2 * damaged
        seen.shoot("1100-healed")
        seen.check()


def test_a_finger_damages_on_a_phone(chromium):
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with visit(chromium, lizard_page(), **phone) as seen:
        whole = seen.grow(150)
        seen.shoot("360-grown")
        seen.place(0, 0)
        scrolled = seen.page.evaluate("scrollY")
        seen.touch((0.3, 0.3), (0.4, 0.4), (0.5, 0.5), (0.7, 0.6))
        damaged = seen.settle()
        assert damaged < 0.8 * whole
        assert seen.page.evaluate("scrollY") == scrolled
        seen.shoot("360-damaged")
        assert seen.grow(200) > 1.2 * damaged
        seen.page.click("summary")
        seen.shoot("360-healed")
        small = "button, select, #tools label, input[type=range]"
        heights = seen.page.eval_on_selector_all(
            small, "(all) => all.map((each) => each.getBoundingClientRect().height)"
        )
        assert min(heights) >= 32
        seen.check()


def test_cells_are_counted_as_python_counts_them(chromium):
    model = lizard()
    expected = model.run_steps(seed_of(model, 48), 20, 0.5, seed=7)
    with visit(chromium, lizard_page()) as seen:
        for _ in range(20):
            seen.page.click("#step")
        seen.wait_for("number('steps') === 20")
        assert seen.settle() == int(model.get_alive_mask(expected).sum())


def test_everything_can_be_done_with_the_keyboard(chromium):
    with visit(chromium, lizard_page()) as seen:
        keyboard, news = seen.page.keyboard, seen.page.locator("#news")
        keyboard.press("Tab")
        assert seen.page.evaluate("document.activeElement.id") == "grid"
        assert seen.page.locator("#ring").is_visible()
        keyboard.press("ArrowUp")
        keyboard.press("Shift+ArrowRight")
        assert news.text_content() == "Cursor at row 24, column 33"
        keyboard.press("p")
        planted = seen.settle()
        assert "Planted at row 24, column 33. Step 0, 18 living cells" in news.text_content()
        assert planted == 18
        keyboard.press("Minus")
        assert news.text_content() == "Radius 4 cells"
        keyboard.press("Enter")
        assert seen.settle() == 9
        seen.shoot("1100-keyboard")
        for key in ("Shift+ArrowLeft", "ArrowDown", "d"):
            keyboard.press(key)
        assert seen.settle() == 0
        assert "0 living cells" in seen.words()
        keyboard.press("s")
        seen.wait_for("number('steps') === 1")
        keyboard.press("r")
        seen.wait_for("number('steps') === 0 && number('count') === 9")
        keyboard.press("Space")
        seen.wait_for("number('steps') > 5")
        keyboard.press("Space")
        assert seen.page.text_content("#run") == "Run"
        for name in ("run", "step", "reset"):
            keyboard.press("Tab")
            assert seen.page.evaluate("document.activeElement.id") == name
        assert (
            seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        )
        unlabelled = seen.page.eval_on_selector_all(
            "input, select", "(all) => all.filter((each) => !each.labels.length).length"
        )
        assert unlabelled == 0
        seen.check()


@pytest.mark.parametrize("path", PATHS)
def test_seeds_can_be_planted_with_the_mouse(chromium, path):
    with visit(chromium, lizard_page()) as seen:
        seen.page.select_option("#path", path)
        seen.page.mouse.dblclick(*seen.place(0.2, 0.2))
        assert seen.settle() == 18
        seen.page.check("input[value=plant]", force=True)
        seen.page.mouse.click(*seen.place(0.8, 0.2))
        assert seen.settle() == 27


def test_its_settings_are_used(chromium):
    with visit(chromium, lizard_page()) as seen:
        sizes = seen.page.eval_on_selector_all("#size option", "(all) => all.map((o) => o.value)")
        assert "48x48" in sizes
        assert "128x128" in sizes
        seen.page.locator("#rate").fill("0")
        assert seen.page.text_content("#rate-text") == "0 %"
        for _ in range(3):
            seen.page.click("#step")
        seen.wait_for("number('steps') === 3")
        assert seen.settle() == 9  # no cell has updated
        seen.page.locator("#rate").fill("1")
        seen.page.click("#step")
        seen.wait_for("number('steps') === 4")
        assert seen.settle() == 9 or seen.number("count") > 9
        seen.page.select_option("#size", "128x128")
        seen.wait_for("number('steps') === 0")
        assert "grid of 128 by 128" in seen.words()
        seen.page.locator("#radius").fill("60")
        seen.page.mouse.click(*seen.place(0.5, 0.5))
        assert seen.settle() == 0
        seen.page.click("#reset")
        assert seen.settle() == 9
        seen.check()


def test_a_path_can_be_chosen_and_goes_on_from_there(chromium):
    with visit(chromium, lizard_page()) as seen:
        count = seen.grow(60)
        steps = seen.number("steps")
        seen.page.select_option("#path", "javascript")
        assert seen.page.text_content("#why") == (
            "JavaScript computes this page, because you chose it."
        )
        assert (seen.settle(), seen.number("steps")) == (count, steps)
        seen.page.select_option("#path", "webgl")
        assert seen.page.text_content("#why").startswith("WebGL 2 computes this page")
        assert (seen.settle(), seen.number("steps")) == (count, steps)
        assert seen.grow(20) > 50


LOSE = """
const original = HTMLCanvasElement.prototype.getContext;
window.contexts = [];
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  const context = original.call(this, kind, ...rest);
  if (kind === "webgl2") window.contexts.push(context);
  return context;
};
"""


def test_a_lost_context_is_replaced(chromium):
    with visit(chromium, lizard_page(), script=LOSE) as seen:
        seen.grow(30)
        seen.page.evaluate("contexts[0].getExtension('WEBGL_lose_context').loseContext()")
        seen.wait_for("document.querySelector('#path').value === 'javascript'")
        assert seen.page.text_content("#why") == (
            "JavaScript computes this page, because WebGL lost its memory. It has started again "
            "from the seed."
        )
        assert seen.settle() == 9
        assert seen.grow(50) > 50


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "HTMLCanvasElement.prototype.getContext = ((old) => function (kind, ...rest) {"
            " return kind === 'webgl2' ? null : old.call(this, kind, ...rest); })"
            "(HTMLCanvasElement.prototype.getContext);",
            "this browser has no WebGL 2.",
        ),
        (
            "WebGL2RenderingContext.prototype.getExtension = () => null;",
            "this browser's WebGL 2 has no float textures to draw on.",
        ),
    ],
)
def test_without_webgl_javascript_computes(chromium, script, reason):
    with visit(chromium, lizard_page(), script=script) as seen:
        text = seen.page.text_content("#why")
        assert text == f"JavaScript computes this page, because {reason}"
        assert seen.page.input_value("#path") == "javascript"
        assert seen.grow(60) > 100
        seen.check()


def test_the_address_can_ask_for_javascript(chromium):
    with visit(chromium, lizard_page(), "?path=js") as seen:
        assert "JavaScript computes this page, because the address" in seen.page.text_content(
            "#why"
        )
        assert seen.settle() == 9
        seen.check()


def test_a_model_too_large_for_webgl_is_computed_by_javascript(chromium):
    case = next(case for case in CASES if case.name == "two passes")
    model = case_model(type(case)("large", case.rule, 68, 1))
    with visit(chromium, page_of(model)) as seen:
        assert "because this model has more than 64 channels." in seen.page.text_content("#why")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_it_moves_by_itself_where_nobody_minds(chromium, motion):
    with visit(chromium, lizard_page(), reduced_motion=motion) as seen:
        if motion == "reduce":
            assert seen.page.text_content("#run") == "Run"
            seen.settle()
            assert seen.number("steps") == 0
        else:
            assert seen.page.text_content("#run") == "Pause"
            seen.wait_for("number('steps') > 3")
        seen.check()


def test_it_is_dark_where_the_user_wants_that(chromium):
    shades = {}
    for scheme in ("light", "dark"):
        with visit(chromium, lizard_page(), color_scheme=scheme) as seen:
            shades[scheme] = seen.colour("body"), seen.colour("form"), seen.colour("#step")
            if scheme == "dark":
                seen.grow(150)
                seen.shoot("1100-dark")
            seen.check()
    assert all(min(shade) > 200 for shade in shades["light"])
    assert all(max(shade) < 80 for shade in shades["dark"])


def test_a_texture_starts_blank_and_offers_no_seed(chromium):
    with visit(chromium, page_of(dots(), "dots")) as seen:
        assert seen.settle() == 40 * 37
        assert not seen.page.locator("#tools").is_visible()
        assert seen.grow(150) == 0
        assert "0 blank cells on a grid of 40 by 37" in seen.words()
        seen.shoot("1100-texture")
        seen.drag((0.5, 0.5), (0.5, 0.5))
        assert 20 < seen.settle() < 200
        assert seen.grow(40) == 0
        seen.check()


def test_what_is_shown_is_what_python_shows(chromium):
    for model in (lizard(), dots()):
        state = model.run_steps(seed_of(model, trained_size(model)), 30, 0.5, seed=7)
        expected = torch.from_numpy(to_pixels(visible(model, state)))
        for path in ("js", "webgl"):
            with visit(chromium, page_of(model), f"?path={path}") as seen:
                for _ in range(30):
                    seen.page.click("#step")
                seen.wait_for("number('steps') === 30")
                pixels = seen.page.evaluate(
                    "() => { const c = document.querySelector('#picture');"
                    " return Array.from(c.getContext('2d')"
                    ".getImageData(0, 0, c.width, c.height).data); }"
                )
            found = torch.tensor(pixels).view(*expected.shape[:2], 4)[..., :3]
            assert (found - expected.int()).abs().max() <= 1


def test_a_browser_without_webgl_computes_in_javascript(launch):
    with visit(launch(*NO_WEBGL), lizard_page()) as seen:
        assert "JavaScript computes this page" in seen.page.text_content("#why")
        assert seen.grow(60) > 100
        seen.shoot("1100-javascript")
        seen.check()
