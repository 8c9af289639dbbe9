"""Exported pages: what is in them, what is refused, and that node computes what Python does."""

import base64
import hashlib
from html.parser import HTMLParser
from importlib.resources import files

import pytest
import torch

from fastnca import NeuralCA
from fastnca.backends.cpp.rules import rule_reasons
from fastnca.exporting import export_html
from fastnca.exporting.page import SCRIPTS
from fastnca.masks import threshold
from fastnca.rule import Rule
from tests.browser import (
    CASE_STEPS,
    CASES,
    NODE,
    PAINTED,
    border,
    case_model,
    case_state,
    check_masks,
    check_painted,
    dots,
    evaluate_in_node,
    largest_difference,
    lizard,
    mask_calls,
    moss,
    page_of,
    paint_calls,
    read_facts,
    run_in_node,
    small,
)
from tests.one_thread import one_thread  # noqa: F401 - by being imported
from tests.rule_cases import CASES as EVERY_CASE

LIMIT = 150_000  # bytes of a page
TOLERANCE = 1e-3


class Elements(HTMLParser):
    """Collects elements, attributes and the text of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self.inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        self.inside = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[self.inside][-1] += data


def trained(channels: int = 16, hidden: int = 128, **options: object) -> NeuralCA:
    model = NeuralCA(channels, hidden, **options)
    for parameter in model.update_net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_a_page_is_small():
    size = len(page_of(trained()).encode())
    print(f"{size} bytes")
    assert 40_000 < size < LIMIT


def test_its_policy_names_its_script_and_its_style_and_allows_nothing_else():
    elements = Elements(page_of(trained()))
    (policy,) = [value for name, value in elements.attributes if "default-src" in str(value)]
    assert policy.startswith("default-src 'none'; ")
    _, script = elements.texts["script"]
    (style,) = elements.texts["style"]
    for kind, text in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_it_refers_to_nothing_outside():
    html = page_of(trained())
    elements = Elements(html)
    links = [value for name, value in elements.attributes if name in ("src", "href", "action")]
    assert links == ["data:,"]
    for word in ("http:", "https:", "//cdn", "url(", "import(", "fetch(", "XMLHttpRequest"):
        assert word not in html
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert "style" not in dict(elements.attributes)


def test_its_scripts_are_the_files_as_they_are():
    html = page_of(trained())
    for name in SCRIPTS:
        text = (files("fastnca.exporting") / name).read_text()
        assert text in html
        assert len(text.splitlines()) <= 300, name
    found = {each.name for each in files("fastnca.exporting").iterdir() if ".js" in each.name}
    assert found == set(SCRIPTS)


@pytest.mark.parametrize(
    "text", ["</script><b>", "<!--<script>", "</title><img src=x>", '"&$policy${title}\u2028\n']
)
def test_no_text_ends_its_element(text):
    plain, model = page_of(trained(), "plain"), trained()
    model.metadata["start"] = text
    html = page_of(model, text)
    elements, expected = Elements(html), Elements(plain)
    assert elements.names == expected.names
    assert elements.texts["title"] == elements.texts["h1"][:1] == [text]
    assert len(elements.texts["script"]) == 2
    assert read_facts(html)["start"] == text


def test_weights_and_facts_are_the_models():
    model = trained().double()
    model.metadata = {"fill_hidden": True, "size": 48}
    facts = read_facts(export_html(model, title="", size=(40, 30), seed=-1, update_rate=0.25))
    assert (facts["size"], facts["seed"], facts["updateRate"]) == ([40, 30], str(2**64 - 1), 0.25)
    content = base64.b64decode(facts["weights"]["hiddenWeight"])
    weight = model.update_net[0].weight.float().flatten()
    assert torch.equal(torch.frombuffer(bytearray(content), dtype=torch.float32), weight)
    facts = read_facts(page_of(model))
    assert (facts["size"], facts["updateRate"], facts["fillHidden"]) == ([48, 48], 0.5, True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("filters", ("identity", "sobel_x", "sobel_y", "laplacian", "laplacian")),
        ("learn_filters", True),
        ("hidden", ()),
        ("hidden", (4, 5)),
        ("activation", "tanh"),
    ],
)
def test_a_rule_beyond_the_page_is_refused_by_its_field(field, value):
    with pytest.raises(ValueError, match=f"^{field}=.*: the page computes"):
        page_of(trained(rule=Rule(**{field: value})))


def test_the_page_computes_the_rules_that_cpp_computes():
    for case in EVERY_CASE:
        model = NeuralCA(max(case.channels, 4), rule=case.rule)
        if rule_reasons(case.rule):
            with pytest.raises(ValueError, match="the page computes"):
                page_of(model)
        else:
            assert read_facts(page_of(model))["channels"] == model.num_channels


def test_a_model_that_is_not_its_rule_is_refused():
    model = trained()
    model.update_net[1] = torch.nn.Tanh()
    with pytest.raises(ValueError, match="update_net has Tanh"):
        page_of(model)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 1025}, "at most 1024 cells a side, got 1025x1025"),
        ({"size": 0}, "size >= 1"),
        ({"seed": 2**64}, "seed must fit 64 bits"),
        ({"update_rate": 1.5}, "update_rate is the probability"),
    ],
)
def test_values_out_of_range_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        export_html(trained(), title="model", **options)


def test_what_cannot_be_shown_is_refused():
    rule = Rule(alive="none", hidden=(4,))
    with pytest.raises(ValueError, match="num_channels=3: the page shows RGBA"):
        page_of(NeuralCA(3, rule=rule))
    model = NeuralCA(3, rule=rule)
    model.metadata["visible"] = "texture"
    assert read_facts(page_of(model))["texture"] is True
    with pytest.raises(ValueError, match="padding='reflect' needs two cells a side, got 1x5"):
        export_html(NeuralCA(rule=Rule(padding="reflect")), title="", size=(1, 5))
    model = trained()
    with torch.no_grad():
        model.update_net[0].bias[3] = float("nan")
    with pytest.raises(ValueError, match="a weight is not finite"):
        page_of(model)


@NODE
def test_masks_in_node_are_those_of_python():
    check_masks(run_in_node(page_of(trained(4, 1)), mask_calls("javascript")))


@NODE
def test_limits_of_masks_are_rounded_as_python_rounds():
    halves = [(n + 0.5) / 2**24 for n in (0, 1, 2, 3, 100, 101, 2**23, 2**23 + 1)]
    rates = [*halves, 0.0, 1.0, 0.1, 0.25, 1 / 3, 0.5, 1 - 2**-25, 2**-25, 5e-324]
    found = evaluate_in_node(f"{rates}.map(maskLimit)")
    assert found == [threshold(rate) for rate in rates]


@pytest.mark.one_in(4)
@NODE
@pytest.mark.parametrize("make", [lizard, dots, small, moss])
def test_grown_models_in_node_are_those_of_python(make):
    model = make()
    (found,) = run_in_node(page_of(model), [{"method": "run", "steps": 200}])
    difference = largest_difference(model, found, 200)
    print(f"node, {make.__name__}, 200 steps: {difference:.2g}")
    assert difference < TOLERANCE


@NODE
def test_dead_cells_that_a_living_one_sees_are_updated_in_node():
    (found,) = run_in_node(page_of(border()), [{"method": "run", "steps": 1}])
    assert largest_difference(border(), found, 1) == 0


@pytest.mark.one_in(7)
@NODE
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_in_node_are_those_of_python(case):
    model, state = case_model(case), case_state(case)
    call = {"method": "run", "steps": CASE_STEPS, "state": state.flatten().tolist()}
    (found,) = run_in_node(page_of(model), [call])
    assert largest_difference(model, found, CASE_STEPS, state=state) < 1e-4


@NODE
def test_damage_and_seeds_leave_the_inputs_and_wrap_on_a_torus():
    check_painted(run_in_node(page_of(case_model(PAINTED)), paint_calls("javascript")))
