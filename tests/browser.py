"""Run exported pages: their scripts in node, and whole pages in Chromium.

Results are those of `window.fastnca`, which `fastnca/exporting/api.js` describes.
"""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastnca import NeuralCA
from fastnca.exporting import export_html
from fastnca.exporting.page import SCRIPTS
from fastnca.masks import update_mask
from fastnca.pictures.render import seed_of, trained_size
from fastnca.rule import RULES, Rule
from fastnca.states import clear_cells
from tests.helpers import load_grown
from tests.published import read_growing, read_texture
from tests.rule_cases import VALUES, Case
from tests.test_published import QUANTISED, make_model

SOFTWARE_WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
NO_WEBGL = ("--disable-gpu", "--disable-3d-apis")
_QUIET = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

ENCODE = """
function encode(numbers) {
  const bytes = new Uint8Array(numbers.buffer);
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}
function compute({method, ...options}) {
  if (options.state) options.state = Float32Array.from(options.state);
  return encode(fastnca[method](options));
}
"""
"""Lets results leave as text."""


def has_node() -> bool:
    """Tell whether there is a node; without one, tests that need it are skipped."""
    return shutil.which("node") is not None


NODE = pytest.mark.skipif(not has_node(), reason="there is no node to run the page's scripts in")


def read_facts(html: str) -> dict[str, Any]:
    """Return the JSON in a page."""
    found = re.search(r'<script type="application/json" id="model">(.*?)</script>', html, re.DOTALL)
    assert found
    facts: dict[str, Any] = json.loads(found[1])
    return facts


def scripts_without_page() -> str:
    """Return the scripts of a page but those that need its elements."""
    names = SCRIPTS[: SCRIPTS.index("api.js") + 1]
    return "\n".join((files("fastnca.exporting") / name).read_text() for name in names)


def make_api(html: str) -> str:
    """Return the JavaScript that makes `fastnca` of the model in a page."""
    return f"makeApi(decodeModel({json.dumps(json.dumps(read_facts(html)))}))"


def evaluate_in_node(expression: str) -> Any:
    """Evaluate an expression in node, with the scripts of a page but without a page."""
    program = f"{scripts_without_page()}\n{ENCODE}\nconsole.log(JSON.stringify({expression}));"
    command = ["node", "-"]
    done = subprocess.run(command, input=program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def run_in_node(html: str, calls: list[dict[str, Any]]) -> list[bytes]:
    """Call `window.fastnca` of a page in node, and return the results' bytes."""
    body = f"globalThis.fastnca = {make_api(html)}; return {json.dumps(calls)}.map(compute);"
    return [base64.b64decode(text) for text in evaluate_in_node(f"(() => {{ {body} }})()")]


@contextmanager
def start_playwright() -> Iterator[Callable[..., Any]]:
    """Yield what starts a Chromium with some flags; skip where playwright or Chromium is missing.

    Playwright's synchronous interface can be started once at a time.
    """
    reason = "pages are tested in Chromium by playwright, and there is no playwright"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    path = next((found for name in _CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("pages are tested in Chromium, and there is none")
    with playwright.sync_playwright() as started:
        browsers = []

        def launch(*flags: str) -> Any:
            args = [*_QUIET, *flags]
            browsers.append(started.chromium.launch(executable_path=path, args=args))
            return browsers[-1]

        yield launch
        for browser in browsers:
            browser.close()


def run_in_browser(page: Any, calls: list[dict[str, Any]], html: str = "") -> list[bytes]:
    """Call `window.fastnca` of an open page, and return the results' bytes.

    Args:
        page: playwright's page.
        calls: methods and their options.
        html: an exported page whose model computes instead; `page` has `scripts_without_page`.
    """
    model = f"const fastnca = {make_api(html)};" if html else ""
    answer = page.evaluate(f"(calls) => {{ {model} {ENCODE} return calls.map(compute); }}", calls)
    return [base64.b64decode(text) for text in answer]


def lizard() -> NeuralCA:
    """Return the published lizard, as a model of `fastnca train` is."""
    model = make_model(read_growing("ex3_lizard"), 16, Rule())
    assert isinstance(model, NeuralCA)
    model.metadata = {"fill_hidden": True, "size": 48, "update_rate": 0.5}
    return model


def dots() -> NeuralCA:
    """Return a published texture, as a model of `fastnca train` is."""
    model = make_model(read_texture("dots"), 12, QUANTISED)
    assert isinstance(model, NeuralCA)
    model.metadata = {"start": "zeros", "visible": "texture", "size": [40, 37]}
    return model


def small() -> NeuralCA:
    """Return a model that the package trained, on a grid that is no square."""
    model: NeuralCA = load_grown().model(dtype=torch.float32).train().requires_grad_(False)
    model.metadata = {"size": [28, 31], "update_rate": 0.6}
    return model


def moss() -> NeuralCA:
    """Return a model that covers every cell with green, and again what was damaged."""
    rule = Rule(("identity", BOX), hidden=(2,), clamp=(0, 1))
    model = NeuralCA(4, rule=rule).train().requires_grad_(False)
    first, _, last = model.update_net
    for layer in (first, last):
        layer.weight.zero_()
        layer.bias.zero_()
    first.weight[0, 2 * 3 + 1] = 1.0  # the alpha around a cell
    first.weight[1, 2 * 1] = 1.0  # its green
    last.weight[3, 0] = 1.0
    last.weight[1] = torch.tensor([0.05, -0.5])[:, None, None]
    model.metadata = {"size": 48, "update_rate": 0.5}
    return model


def border() -> NeuralCA:
    """Return a model whose seed dies, while its neighbours live by cells that were dead."""
    model = NeuralCA(4, rule=Rule((BOX,), hidden=(2,))).train().requires_grad_(False)
    first, _, last = model.update_net
    first.weight[:, 3, 0, 0] = torch.tensor([-100.0, 1.0])  # of the alpha around a cell
    first.bias[:] = torch.tensor([0.5, 0.0])
    last.weight[3, :, 0, 0] = torch.tensor([1.0, -2.0])
    model.metadata = {"size": [9, 11], "update_rate": 1.0}
    assert int((model.run_steps(seed_of(model, (9, 11)), 1, 1.0)[0, 3] == -2).sum()) == 8
    return model


def rule_cases() -> list[Case]:
    """Make a case of every value of a rule's fields that the page computes."""
    texture = Rule(("identity", "sobel_x", "laplacian"), alive="none", hidden=(9,))
    growing = Rule(hidden=(9,))
    fields = ("filters", "padding", "alive", "alive_threshold", "hidden", "final_bias", "inputs")
    cases = []
    for base in (growing, texture):
        for field in (*fields, "clamp", "step_size"):
            for place, value in enumerate(VALUES[field]):
                if field == "filters" and len(value) > 4:
                    continue
                if field == "hidden" and len(value) != 1:
                    continue
                rule = Rule(**{**base.to_dict(), field: value})
                name = f"{base.alive} {field} {place}"
                cases.append(Case(name, rule, 7 + place + rule.inputs, 500 + len(cases)))
    bank = RULES["texture"].filters
    large = Case("four passes", Rule(bank, hidden=(8,)), 64, 600)
    return [*cases, Case("two passes", Rule(inputs=2, hidden=(8,)), 21, 601), large]


def case_model(case: Case) -> NeuralCA:
    """Return the model of a case, float32, in training mode."""
    model = NeuralCA(case.channels, rule=case.rule).train().requires_grad_(False)
    model.load_state_dict(case.weights())
    model.metadata = {"size": [9, 11], "fill_hidden": True}
    return model


def case_state(case: Case) -> Tensor:
    """Return a state of a case: `[1, C, 9, 11]` float32, alive in places, inputs everywhere.

    Every other case has few living cells, so that there are borders of life.
    """
    draws = torch.Generator().manual_seed(case.number + 1)
    there = torch.rand(1, 1, 9, 11, generator=draws) < (0.4, 0.03)[case.number % 2]
    there[..., 4, 5] = True
    state = torch.randn(1, case.channels, 9, 11, generator=draws)
    state[:, : case.channels - case.rule.inputs] *= there
    state[:, 3].abs_()
    return state


BOX = ((1.0, 1.0, 1.0),) * 3
CASES = rule_cases()
CASE_STEPS = 4
PAINTED = Case("painted", Rule(inputs=2, hidden=(4,), padding="circular"), 9, 700)
MASKS = [
    # seed, step, rate, height, width
    (7, 0, 0.5, 5, 7),
    (7, 1, 0.5, 5, 7),
    (0, 12345, 0.1, 3, 3),
    (2**32 + 5, 3, 0.9, 6, 5),
    (2**63 + 2**31 + 11, 2**31, 0.25, 7, 9),
    (2**64 - 1, 2**31 - 1, 1 / 3, 8, 8),
    (-5, 2**32 + 17, 0.6, 4, 13),
    (123456789012345678, 2**33 - 1, 2**-23, 64, 61),
    (1, 4, 0.0, 4, 4),
    (1, 4, 1.0, 4, 4),
    (99, 10, 1.5 * 2**-24, 100, 101),
]


def mask_calls(path: str) -> list[dict[str, Any]]:
    """Return the calls of `fastnca.mask` for `MASKS`."""
    return [
        {
            "method": "mask",
            "path": path,
            "size": [height, width],
            "seed": str(seed),
            "step": step,
            "updateRate": rate,
        }
        for seed, step, rate, height, width in MASKS
    ]


def check_masks(found: list[bytes]) -> None:
    """Compare masks with those of `update_mask`, bit by bit."""
    for (seed, step, rate, height, width), mask in zip(MASKS, found, strict=True):
        expected = update_mask(seed, step, (1, 1, height, width), rate)
        assert torch.equal(to_tensor(mask, np.uint8).view(height, width).bool(), expected[0, 0])


def to_tensor(content: bytes, dtype: Any = np.float32) -> Tensor:
    """Turn bytes into a vector."""
    return torch.from_numpy(np.frombuffer(content, dtype).copy())


def largest_difference(
    model: NeuralCA, found: bytes, steps: int, state: Tensor | None = None
) -> float:
    """Compare a state of the page with `run_steps`: the largest absolute difference."""
    state = seed_of(model, trained_size(model)) if state is None else state
    rate = model.metadata.get("update_rate", 0.5)
    expected = model.train().run_steps(state, steps, rate, seed=7)
    assert 0 < expected.abs().max() < 1e3
    return float((to_tensor(found).view_as(expected) - expected).abs().max())


def paint_calls(path: str) -> list[dict[str, Any]]:
    """Return the calls of `fastnca.run` that `check_painted` looks at."""
    state = case_state(PAINTED).flatten().tolist()
    start = {"method": "run", "path": path, "state": state}
    return [
        {**start, "damage": [4.25, 6.5, 2.75]},
        {**start, "damage": [-0.4, 10.5, 3]},
        {**start, "plant": [8, 0]},
        {**start, "plant": [2, 3], "damage": [2, 3, 0.25]},
    ]


def check_painted(found: list[bytes]) -> None:
    """Compare what was damaged and planted with what should have been, on a torus."""
    state = case_state(PAINTED)
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")

    def clear(row: float, column: float, radius: float) -> Tensor:
        dy, dx = ((y - row).abs(), (x - column).abs())
        dy, dx = (torch.minimum(dy, (9 - dy).abs()), torch.minimum(dx, (11 - dx).abs()))
        return clear_cells(state, dy**2 + dx**2 < radius**2, PAINTED.rule.inputs)

    planted = state.clone()
    planted[:, : PAINTED.channels - PAINTED.rule.inputs, 8, 0] = 0
    planted[:, 3 : PAINTED.channels - PAINTED.rule.inputs, 8, 0] = 1
    damaged = [clear(4.25, 6.5, 2.75), clear(-0.4, 10.5, 3)]
    assert [int((each != state).any(1).sum()) > 5 for each in damaged] == [True, True]
    expected = [*damaged, planted, clear(2, 3, 0.25)]
    for content, wanted in zip(found, expected, strict=True):
        assert torch.equal(to_tensor(content).view_as(wanted), wanted)


def page_of(model: NeuralCA, title: str = "model") -> str:
    """Export a model."""
    return export_html(model, title=title)
