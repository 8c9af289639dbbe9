"""The notebooks: stored as they ran, and they run. What they claim they assert themselves."""

import ast
import base64
import copy
import json
import re
import sys
from pathlib import Path

import numpy
import pytest

from fastnca.backends.triton_fused.limits import interpreter_reasons

FOLDER = Path(__file__).parent.parent / "docs" / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
TEXTS = {path.stem: path.read_text() for path in PATHS}

MOST_BYTES = 400_000
MOST_PIXELS = 800
IMPORTED = {"fastnca", "matplotlib", "numpy", "torch", "triton"}
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
HERE = re.escape(Path(__file__).resolve().parts[1])
FOREIGN_PATH = re.compile(rf"(?<![\w.:/])(?:/(?:{HERE}|tmp|home|root|usr|opt|mnt|Users)/|[A-Z]:\\)")

each_notebook = pytest.mark.parametrize("name", TEXTS)


def source(cell):
    return "".join(cell["source"])


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell["outputs"]]


def texts(notebook):
    """Everything that a reader sees, and what no picture holds."""
    for cell in notebook["cells"]:
        yield source(cell)
    for output in outputs(notebook):
        yield "".join(output.get("text", ()))
        yield "".join(output.get("traceback", ()))
        for kind, value in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield "".join(value)


def pictures(notebook):
    """The width and height of each picture, in pixels."""
    for output in outputs(notebook):
        if "image/png" in output.get("data", {}):
            header = base64.b64decode("".join(output["data"]["image/png"]))[:24]
            yield tuple(int.from_bytes(header[k : k + 4], "big") for k in (16, 20))


def draws(cell):
    return any("image/png" in output.get("data", {}) for output in cell["outputs"])


def imports(notebook):
    """The packages that the cells import."""
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(source(cell))):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield (node.module or ".").split(".")[0]


def claims(notebook):
    trees = (ast.parse(source(cell)) for cell in code_cells(notebook))
    return sum(isinstance(node, ast.Assert) for tree in trees for node in ast.walk(tree))


def faults(notebook):
    """Say what keeps a notebook from being one of these."""
    cells = code_cells(notebook)
    found = []
    if [cell["execution_count"] for cell in cells] != list(range(1, len(cells) + 1)):
        found.append("not executed in order")
    if any(output["output_type"] == "error" for output in outputs(notebook)):
        found.append("an error")
    if any(output.get("name") == "stderr" for output in outputs(notebook)):
        found.append("a warning")
    acts = [cell for cell in cells if "def " not in source(cell)]
    if any("print(" in source(cell) and not cell["outputs"] for cell in acts):
        found.append("output is missing")
    if any("plt.show()" in source(cell) and not draws(cell) for cell in acts):
        found.append("a picture is missing")
    if not all(0 < side <= MOST_PIXELS for size in pictures(notebook) for side in size):
        found.append("a large picture")
    if any(FOREIGN_PATH.search(text) for text in texts(notebook)):
        found.append("an absolute path")
    if unknown := set(imports(notebook)) - IMPORTED - sys.stdlib_module_names:
        found.append(f"imports {', '.join(sorted(unknown))}")
    if notebook["metadata"] != METADATA or notebook["nbformat"] != 4:
        found.append("other metadata")
    if not source(notebook["cells"][0]).startswith("# "):
        found.append("no title")
    if claims(notebook) < 2:
        found.append("claims nothing")
    return found


def test_there_are_five():
    assert len(PATHS) >= 5
    assert [path.name[:3] for path in PATHS] == [f"{n:02}_" for n in range(1, len(PATHS) + 1)]


def test_the_index_has_a_line_for_each():
    index = (FOLDER / "README.md").read_text()
    assert re.findall(r"\]\((\w+)\.ipynb\) \| \w", index) == list(TEXTS)


@each_notebook
def test_is_stored_as_it_ran(name):
    assert faults(json.loads(TEXTS[name])) == []
    assert len(TEXTS[name].encode()) <= MOST_BYTES


@each_notebook
def test_links_lead_somewhere(name):
    notebook = json.loads(TEXTS[name])
    pages = [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    links = [link for page in pages for link in re.findall(r"\]\(([^)\s]+)\)", page)]
    assert links
    for link in links:
        assert link.startswith("https://") or (FOLDER / link.partition("#")[0]).is_file()


def forget_to_run(cell):
    cell["execution_count"] = None


def run_again(cell):
    cell["execution_count"] += 1


def fail(cell):
    error = {"output_type": "error", "ename": "E", "evalue": "", "traceback": ["E"]}
    cell["outputs"].append(error)


def warn(cell):
    cell["outputs"].append({"output_type": "stream", "name": "stderr", "text": ["careful"]})


def clear(cell):
    cell["outputs"] = []


def name_a_folder(cell):
    cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": ["in /home/me/x"]})


def read_a_folder(cell):
    cell["source"] = [*cell["source"], f"\nopen('/{HERE}/x')"]


def import_tests(cell):
    cell["source"] = [*cell["source"], "\nfrom tests import helpers"]


MISTAKES = {
    forget_to_run: "not executed in order",
    run_again: "not executed in order",
    fail: "an error",
    warn: "a warning",
    name_a_folder: "an absolute path",
    read_a_folder: "an absolute path",
    import_tests: "imports tests",
}


@each_notebook
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_mistakes_are_found(name, mistake):
    notebook = json.loads(TEXTS[name])
    mistake(code_cells(notebook)[-1])
    assert faults(notebook) == [MISTAKES[mistake]]


@each_notebook
def test_missing_outputs_are_found(name):
    notebook = json.loads(TEXTS[name])
    kinds = set()
    for number, cell in enumerate(code_cells(notebook)):
        if cell["outputs"]:
            changed = copy.deepcopy(notebook)
            clear(code_cells(changed)[number])
            kinds.update(faults(changed))
    assert {"output is missing", "a picture is missing"} <= kinds


def kinds(notebook):
    """What each cell puts out, but not the numbers, which depend on the machine."""
    return [
        {output.get("name", output["output_type"]) for output in cell["outputs"]}
        for cell in code_cells(notebook)
    ]


@pytest.mark.long
@each_notebook
def test_runs(name, tmp_path, monkeypatch):
    extra = "notebooks are executed with the extra 'notebooks': pip install '.[notebooks]'"
    client = pytest.importorskip("nbclient", reason=extra)
    pytest.importorskip("ipykernel", reason=extra)
    import nbformat

    if "kernels" in name:
        import triton

        for reason in interpreter_reasons(triton.__version__, numpy.__version__):
            pytest.skip(reason)
    for variable in ("MPLBACKEND", "TRITON_INTERPRET"):  # as a reader has it, not as the tests
        monkeypatch.delenv(variable, raising=False)
    notebook = nbformat.reads(TEXTS[name], as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()  # an assertion of the notebook that does not hold raises here
    notebook.metadata.pop("language_info", None)
    assert faults(notebook) == []
    assert kinds(notebook) == kinds(json.loads(TEXTS[name]))
    assert list(tmp_path.iterdir()) == []
