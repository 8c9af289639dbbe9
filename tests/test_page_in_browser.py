"""Exported pages in Chromium: both paths compute what Python does, and people can use them."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from fastnca.exporting import export_html
from fastnca.pictures import to_pixels
from fastnca.pictures.render import seed_of, trained_size, visible
from tests.browser import (
    CASE_STEPS,
    CASES,
    NO_WEBGL,
    PAINTED,
    SOFTWARE_WEBGL,
    border,
    case_model,
    case_state,
    check_masks,
    check_painted,
    dots,
    largest_difference,
    lizard,
    mask_calls,
    moss,
    page_of,
    paint_calls,
    run_in_browser,
    scripts_without_page,
    small,
    start_playwright,
)
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.visit import visit

PHONE = {"width": 360, "height": 740}
PATHS = ("javascript", "webgl")


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
def moss_page() -> str:
    return page_of(moss(), "moss")


@pytest.mark.one_in(2)
@pytest.mark.parametrize("path", PATHS)
def test_masks_are_those_of_python(chromium, path):
    with visit(chromium, moss_page()) as seen:
        check_masks(run_in_browser(seen.page, mask_calls(path)))


@pytest.mark.one_in(8)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("make", [lizard, dots, small, moss])
def test_grown_models_are_those_of_python(chromium, make, path):
    model = make()
    with visit(chromium, page_of(model)) as seen:
        (found,) = run_in_browser(seen.page, [{"method": "run", "path": path, "steps": 200}])
    difference = largest_difference(model, found, 200)
    print(f"{path} in Chromium, {make.__name__}, 200 steps: {difference:.2g}")
    assert difference < 1e-3


@pytest.fixture(scope="module")
def scripts(chromium: Any) -> Iterator[Any]:
    """A page with the scripts and no model: many models are tried there."""
    page = chromium.new_page()
    page.add_script_tag(content=scripts_without_page())
    yield page
    page.close()


@pytest.mark.one_in(8)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_are_those_of_python(scripts, case):
    model, state = case_model(case), case_state(case)
    numbers = state.flatten().tolist()
    call = {"method": "run", "steps": CASE_STEPS, "state": numbers}
    both = run_in_browser(scripts, [{**call, "path": path} for path in PATHS], page_of(model))
    for path, found in zip(PATHS, both, strict=True):
        difference = largest_difference(model, found, CASE_STEPS, state)
        print(f"{path} in Chromium, {case.name}: {difference:.2g}")
        assert difference < 1e-4


@pytest.mark.parametrize("path", PATHS)
def test_dead_cells_that_a_living_one_sees_are_updated(scripts, path):
    call = {"method": "run", "path": path, "steps": 1}
    (found,) = run_in_browser(scripts, [call], page_of(border()))
    assert largest_difference(border(), found, 1) == 0


@pytest.mark.parametrize("path", PATHS)
def test_damage_and_seeds_leave_the_inputs_and_wrap_on_a_torus(scripts, path):
    check_painted(run_in_browser(scripts, paint_calls(path), page_of(case_model(PAINTED))))


@pytest.mark.long
@pytest.mark.parametrize("make", [lizard, moss])
def test_it_grows_is_damaged_and_heals(chromium, make):
    name = make.__name__
    with visit(chromium, page_of(make(), name)) as seen:
        assert seen.page.text_content("#why").startswith("WebGL 2 computes this page, because")
        assert seen.settle() == 9
        whole = seen.grow(150)
        assert whole > 500
        seen.shoot(f"1100-grown-{name}")
        seen.drag((0.3, 0.3), (0.5, 0.5), (0.7, 0.6))
        damaged = seen.settle()
        assert damaged < whole - 150
        assert f"{damaged:,} living cells on a grid of 48 by 48" in seen.words()
        assert seen.words() in seen.page.text_content("#news")
        seen.shoot(f"1100-damaged-{name}")
        healed = seen.grow(200)
        assert healed > damaged + 150, seen.words()
        seen.shoot(f"1100-healed-{name}")
        seen.check()


@pytest.mark.long
@pytest.mark.parametrize("make", [lizard, moss])
def test_a_finger_damages_on_a_phone(chromium, make):
    name = make.__name__
    phone = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with visit(chromium, page_of(make(), name), **phone) as seen:
        whole = seen.grow(150)
        seen.shoot(f"360-grown-{name}")
        seen.place(0, 0)
        scrolled = seen.page.evaluate("scrollY")
        seen.touch((0.3, 0.3), (0.4, 0.4), (0.5, 0.5), (0.7, 0.6))
        damaged = seen.settle()
        assert damaged < whole - 150
        assert seen.page.evaluate("scrollY") == scrolled
        seen.shoot(f"360-damaged-{name}")
        healed = seen.grow(200)
        assert healed > damaged + 150, seen.words()
        seen.page.click("summary")
        seen.shoot(f"360-healed-{name}")
        small = "button, select, #tools label, input[type=range]"
        heights = seen.page.eval_on_selector_all(
            small, "(all) => all.map((each) => each.getBoundingClientRect().height)"
        )
        assert min(heights) >= 32
        seen.check()


@pytest.mark.long
def test_cells_are_counted_as_python_counts_them(chromium):
    model = moss()
    expected = model.run_steps(seed_of(model, 48), 20, 0.5, seed=7)
    with visit(chromium, moss_page()) as seen:
        for _ in range(20):
            seen.page.click("#step")
        seen.wait_for("number('steps') === 20")
        assert seen.settle() == int(model.get_alive_mask(expected).sum())


@pytest.mark.long
def test_everything_can_be_done_with_the_keyboard(chromium):
    with visit(chromium, moss_page()) as seen:
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


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS)
def test_seeds_can_be_planted_with_the_mouse(chromium, path):
    with visit(chromium, moss_page()) as seen:
        seen.page.select_option("#path", path)
        seen.page.mouse.dblclick(*seen.place(0.2, 0.2))
        assert seen.settle() == 18
        seen.page.check("input[value=plant]", force=True)
        seen.page.mouse.click(*seen.place(0.8, 0.2))
        assert seen.settle() == 27


@pytest.mark.long
def test_its_settings_are_used(chromium):
    with visit(chromium, moss_page()) as seen:
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
        assert seen.settle() == 25  # every cell has
        seen.page.select_option("#size", "128x128")
        seen.wait_for("number('steps') === 0")
        assert "grid of 128 by 128" in seen.words()
        seen.page.locator("#radius").fill("60")
        seen.page.mouse.click(*seen.place(0.5, 0.5))
        assert seen.settle() == 0
        seen.page.click("#reset")
        assert seen.settle() == 9
        seen.check()


@pytest.mark.long
def test_a_path_can_be_chosen_and_goes_on_from_there(chromium):
    with visit(chromium, moss_page()) as seen:
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


@pytest.mark.long
def test_a_lost_context_is_replaced(chromium):
    with visit(chromium, moss_page(), script=LOSE) as seen:
        seen.grow(30)
        seen.page.evaluate("contexts[0].getExtension('WEBGL_lose_context').loseContext()")
        seen.wait_for("document.querySelector('#path').value === 'javascript'")
        assert seen.page.text_content("#why") == (
            "JavaScript computes this page, because WebGL lost its memory. It has started again "
            "from the seed."
        )
        assert seen.settle() == 9
        assert seen.grow(50) > 50


@pytest.mark.one_in(2)
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
    with visit(chromium, moss_page(), script=script) as seen:
        text = seen.page.text_content("#why")
        assert text == f"JavaScript computes this page, because {reason}"
        assert seen.page.input_value("#path") == "javascript"
        assert seen.grow(60) > 100
        seen.check()


def test_the_address_can_ask_for_javascript(chromium):
    with visit(chromium, moss_page(), "?path=js") as seen:
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
    with visit(chromium, moss_page(), reduced_motion=motion) as seen:
        if motion == "reduce":
            assert seen.page.text_content("#run") == "Run"
            seen.settle()
            assert seen.number("steps") == 0
        else:
            assert seen.page.text_content("#run") == "Pause"
            seen.wait_for("number('steps') > 3")
        seen.check()


@pytest.mark.long
def test_it_is_dark_where_the_user_wants_that(chromium):
    shades = {}
    for scheme in ("light", "dark"):
        with visit(chromium, moss_page(), color_scheme=scheme) as seen:
            shades[scheme] = seen.colour("body"), seen.colour("form"), seen.colour("#step")
            if scheme == "dark":
                seen.grow(150)
                seen.shoot("1100-dark")
            seen.check()
    assert all(min(shade) > 200 for shade in shades["light"])
    assert all(max(shade) < 80 for shade in shades["dark"])


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.parametrize("path", ["js", "webgl"])
@pytest.mark.parametrize("make", [moss, lizard, dots])
def test_what_is_shown_is_what_python_shows(chromium, make, path):
    model = make()
    state = model.run_steps(seed_of(model, trained_size(model)), 30, 0.5, seed=7)
    expected = torch.from_numpy(to_pixels(visible(model, state))).int()
    with visit(chromium, page_of(model), f"?path={path}") as seen:
        for _ in range(30):
            seen.page.click("#step")
        seen.wait_for("number('steps') === 30")
        seen.settle()
        pixels = seen.page.evaluate(
            "() => { const c = document.querySelector('#picture');"
            " return Array.from(c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data); }"
        )
    found = torch.tensor(pixels).view(*expected.shape[:2], 4)[..., :3]
    assert expected.unique().numel() > 5
    assert int((found - expected).abs().max()) <= 1


def test_a_browser_without_webgl_computes_in_javascript(launch):
    with visit(launch(*NO_WEBGL), moss_page()) as seen:
        assert "JavaScript computes this page" in seen.page.text_content("#why")
        assert seen.grow(60) > 100
        seen.shoot("1100-javascript")
        seen.check()


@pytest.mark.long
@pytest.mark.parametrize("path", ["js", "webgl"])
def test_what_is_no_number_is_white(chromium, path):
    model = moss()
    model.update_net[2].weight[3, 0] = 3e38
    model.update_net[2].weight[:2, 1] = -3e38
    model.rule = replace(model.rule, clamp=None)
    state = model.run_steps(seed_of(model, 48), 6, 1.0, seed=7)
    assert state[0, :4, 24, 24].isnan().all()
    with visit(chromium, export_html(model, title="", update_rate=1), f"?path={path}") as seen:
        for _ in range(6):
            seen.page.click("#step")
        seen.wait_for("number('steps') === 6")
        seen.settle()
        pixels = seen.page.evaluate(
            "() => Array.from(document.querySelector('#picture').getContext('2d')"
            ".getImageData(24, 24, 1, 1).data)"
        )
    assert pixels == [255] * 4
