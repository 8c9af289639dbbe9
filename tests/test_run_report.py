"""The report of a run: what is measured, and a page that holds everything it shows."""

import base64
import hashlib
import io
import math
import re
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from fastnca import NeuralCA, create_seed
from fastnca.commands.parser import main
from fastnca.report import (
    Picture,
    Section,
    Table,
    measure_recovery,
    measure_stability,
    write_page,
)

QUICK = [
    *("--size", "12", "--hidden", "6", "--iterations", "4"),
    *("--pool-size", "5", "--batch-size", "4", "--min-steps", "3", "--max-steps", "5"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "a <b> & c"
    assert main(["train", *QUICK, "--out", str(out)]) == 0
    return out


KNOWN = {
    *("html", "head", "body", "title", "style", "section", "h1", "h2", "p", "dl", "dt", "dd"),
    *("div", "figure", "figcaption", "table", "thead", "tbody", "tr", "th", "td"),
}
VOID = {"img", "link", "meta"}
HARMLESS = {"alt", "charset", "class", "content", "http-equiv", "lang", "name", "rel", "scope"}


class Page(HTMLParser):
    """Collects what a browser would load or run; refuses what is not closed or not known."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.open, self.policy = [], [], [], ""
        self.said = []  # pairs of tag and text
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag in KNOWN | VOID
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attributes)
        assert len(values) == len(attributes)
        self.sources += [values[name] for name in ("src", "href") if name in values]
        assert values.keys() <= {*HARMLESS, "src", "href"}
        if "http-equiv" in values:
            self.policy += values["content"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append((self.open[-1] if self.open else "", data))

    def texts(self, tag):
        return [data for where, data in self.said if where == tag]

    @property
    def text(self):
        return "".join(data for _, data in self.said)


@pytest.mark.long
def test_the_report_shows_all_parts_and_asks_for_nothing(finished, tmp_path):
    out = tmp_path / "report.html"
    flags = ["--steps", "5", "20", "--runs", "2", "--out", str(out)]
    assert main(["report", str(finished), *flags]) == 0
    page = Page(out.read_text())
    assert page.texts("h1") == ["fastnca: a <b> & c"]
    assert page.texts("h2") == ["Loss", "Growth", "Regeneration", "Pool", "Stability"]
    assert all(source.startswith("data:") for source in page.sources)
    (style,) = page.texts("style")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert page.policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'"
    )
    assert not re.search(r"url|@import|:\s*//", style)
    pictures = [s for s in page.sources if s.startswith("data:image/png;base64,")]
    assert len(pictures) == 8  # loss, growth, target, four kinds of damage, pool
    for source in pictures:
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as picture:
            picture.verify()
    cells = page.texts("td")
    damages = ("square in the middle", "left half", "lower half", "disc at the upper right")
    assert tuple(cells[0:16:4]) == damages
    assert tuple(page.texts("figcaption")[3:7]) == damages
    assert (cells[16], cells[21]) == ("5", "20")
    assert len(cells) == 4 * 4 + 2 * 5


def test_a_report_on_a_run_that_was_killed(finished, tmp_path):
    run = tmp_path / "killed"
    shutil.copytree(finished, run)
    for name in ("config.json", "model.safetensors", "pool.png"):
        (run / name).unlink()
    assert main(["report", str(run), "--steps", "3", "--runs", "1"]) == 0
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "run.toml is missing"),
        ("x = = 1", "not a TOML file"),
        ("size = 3", "are missing or of a wrong type: target, update_rate"),
        (
            'size = "3"\ntarget = 3\ntarget_padding = "1"',
            "wrong type: target, size, target_padding, update_rate",
        ),
    ],
)
def test_what_is_no_run_gets_no_report(tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "run.toml").write_text(content)
    assert main(["report", str(tmp_path)]) == 1
    assert words in capsys.readouterr().err


def report(run, **changes):
    """Write the report of a changed run; return the page."""
    for name, content in changes.items():
        (run / name.replace("_", ".")).write_text(content)
    assert main(["report", str(run), "--steps", "3", "--runs", "1"]) == 0
    return Page((run / "report.html").read_text())


def test_a_report_says_which_parts_are_not_there(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "metrics.csv").unlink()
    shutil.rmtree(run / "ckpt-00000004")
    page = report(run)
    assert page.texts("h2") == ["Loss", "Growth", "Regeneration", "Pool", "Stability"]
    assert "The run has no metrics.csv." in page.texts("p")
    assert any("no saved run" in text for text in page.texts("p"))
    header = "iteration,loss,skipped\n"
    page = report(run, metrics_csv=header)
    assert "No iteration is done." in page.texts("p")
    page = report(run, metrics_csv=f"{header}1,0.5,0\n2,nan,1\n3,0.")  # killed while it wrote
    assert "2 iterations, 1 of them skipped for numbers that are not finite." in page.texts("p")


@pytest.mark.parametrize("content", ["iteration,loss\n1,abc\n", "x\n1\n", "iteration,loss\n1\n"])
def test_a_report_on_damaged_metrics_is_refused(finished, tmp_path, capsys, content):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "metrics.csv").write_text(content)
    assert main(["report", str(run), "--steps", "3", "--runs", "1"]) == 1
    assert "metrics.csv: not the metrics of a run" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["none/report.html", "."])
def test_where_no_page_can_be_written_nothing_is_measured(finished, tmp_path, capsys, out):
    assert main(["report", str(finished), "--out", str(tmp_path / out)]) == 1
    said = capsys.readouterr()
    assert "no file can be written there" in said.err
    assert said.out == ""


PAYLOADS = (
    "</title><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--",
    "]]>",
    "&lt;script&gt;",
    "\u2028</style><script>",
)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_breaks_out_of_the_page(payload):
    parts = [Picture(b"x", payload), Table([payload], [[payload]])]
    page = Page(write_page(payload, [(payload, payload)], [Section(payload, payload, parts)]))
    plain = Page(write_page("t", [("t", "t")], [Section("t", "t", [Picture(b"x", "t"), parts[1]])]))
    assert page.tags == plain.tags
    assert page.text.count(payload) >= 7


def still_life(alpha):
    """A model that changes nothing, and a state on which the target lies."""
    model = NeuralCA(6, 4)
    state = create_seed(8, 6)
    state[:, 3] = alpha
    return model, state


def test_stability_tells_living_dead_and_exploded_apart():
    model, alive = still_life(0.5)
    target = alive[:, :4].clone()
    results = measure_stability(model, alive, target, [7, 3], runs=3)
    assert [each.steps for each in results] == [3, 7]
    assert (results[1].loss, results[1].alive) == (0.0, 1.0)
    assert (results[1].dead, results[1].exploded) == (0.0, 0.0)
    gone = measure_stability(model, alive * 0, target, [2])[0]
    assert (gone.dead, gone.exploded, gone.alive) == (1.0, 0.0, 0.0)
    assert gone.loss == pytest.approx(float(target.square().mean()))
    for value in (1e3, float("nan")):
        wild = alive.clone()
        wild[0, 5, 2, 2] = value
        measured = measure_stability(model, wild, target, [1])[0]
        assert (measured.dead, measured.exploded) == (0.0, 1.0)
        assert math.isnan(measured.alive)
    assert model.training


def test_one_exploded_rollout_does_not_hide_the_others(monkeypatch):
    model, alive = still_life(0.5)

    def run_steps(state, *_, **__):
        state = state.clone()
        state[0] = float("nan")
        return state

    monkeypatch.setattr(model, "run_steps", run_steps)
    target = alive[:, :4].clone()
    few = measure_stability(model, alive, target, [1], runs=4)[0]
    assert (few.loss, few.alive, few.dead, few.exploded) == (0.0, 1.0, 0.0, 0.25)
    assert measure_stability(model, alive, target, [1], runs=2)[0].loss == math.inf


def test_recovery_is_measured_after_each_damage():
    model, alive = still_life(0.5)
    target = alive[:, :4].clone()
    results = measure_recovery(model, alive, target, runs=2, steps=6)
    assert len({each.name for each in results}) == 4
    for each in results:
        assert each.before == 0.0
        assert each.after == each.recovered > 0  # a model that changes nothing does not recover
        assert each.states.shape == (5, 6, 8, 8)
        assert each.moments == (2, 4, 6)
