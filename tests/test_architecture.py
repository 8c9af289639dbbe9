"""Import directions, light imports, the public names, and file sizes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastnca

ROOT = Path(__file__).parent.parent

# Each module may import what stands on floors below its own.
FLOORS = [
    ["fastnca._torch_internals", "fastnca.states", "fastnca.distributed", "fastnca.version"],
    [
        "fastnca.losses",
        "fastnca.life",
        "fastnca.masks",
        "fastnca.targets",
        "fastnca.textures",
        "fastnca.backends",
        "fastnca.cuda_graphs",
    ],
    ["fastnca.filters"],
    ["fastnca.rule"],
    ["fastnca.checks", "fastnca.reference", "fastnca.storage.atomic"],
    ["fastnca.backends.autograd"],
    ["fastnca.backends.base", "fastnca.fixed_filters"],
    ["fastnca.recognition"],
    ["fastnca.backends.cpp", "fastnca.backends.torch_active", "fastnca.backends.triton_fused"],
    ["fastnca.backends.choose", "fastnca.backends.operators", "fastnca.storage"],
    ["fastnca.backends.dispatch", "fastnca.images"],
    ["fastnca.module"],
    ["fastnca.pictures", "fastnca.memory"],
    ["fastnca.training"],
    ["fastnca.report", "fastnca.exporting", "fastnca.importing"],
    ["fastnca.commands", "fastnca"],
    ["fastnca.__main__"],
]

# Within training, each module may import those before it.
TRAINING = ["presets", "config", "task", "sampling", "pool", "optimizer", "callbacks", "iteration"]
TRAINING += ["graphs", "recovery", "ema", "facts", "loop", "trainer", "tutorial"]


def read_modules():
    """Yield the dotted name and the syntax tree of every module of the package."""
    for path in sorted((ROOT / "fastnca").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[1] != "kernels":
            name = ".".join(parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text())


MODULES = list(read_modules())


def floor(name):
    """Return the floor of the longest listed prefix of `name`."""
    fits = [
        (len(prefix), number)
        for number, names in enumerate(FLOORS)
        for prefix in names
        if name == prefix or name.startswith(prefix + ".")
    ]
    return max(fits)[1]


def imports(tree):
    """Yield the names of imported modules, also within functions.

    Blocks under `TYPE_CHECKING` do not count: they are not run.
    """
    typing = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    skipped = {id(child) for block in typing for child in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            if node.module == "fastnca":
                yield from (f"fastnca.{alias.name}" for alias in node.names)
            yield node.module


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_imports_point_downwards(name, tree):
    own = name.rsplit(".", 1)[0] if name.count(".") > 1 else name
    known = {module for module, _ in MODULES}
    for imported in imports(tree):
        if not imported.startswith("fastnca.") or imported not in known:
            continue
        if imported == own or imported.startswith(own + ".") or name == "fastnca":
            continue
        same_package = imported.rsplit(".", 1)[0] == own and own.count(".") == 1
        assert same_package or floor(imported) < floor(name), f"{name} imports {imported}"


def test_imports_within_training_point_downwards():
    found = {name.rsplit(".", 1)[1] for name, _ in MODULES if name.startswith("fastnca.training.")}
    assert found == set(TRAINING)
    for name, tree in MODULES:
        if not name.startswith("fastnca.training."):
            continue
        own = TRAINING.index(name.rsplit(".", 1)[1])
        for imported in imports(tree):
            if imported.startswith("fastnca.training."):
                assert TRAINING.index(imported.rsplit(".", 1)[1]) < own, f"{name}: {imported}"


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_only_the_kernels_import_triton_and_nobody_a_bare_kernels(name, tree):
    roots = {imported.split(".")[0] for imported in imports(tree)}
    assert "triton" not in roots
    assert "kernels" not in roots


def test_the_reference_imports_torch_only():
    tree = dict(MODULES)["fastnca.reference"]
    roots = {imported.split(".")[0] for imported in imports(tree)}
    assert roots == {"itertools", "torch", "fastnca"}


def test_import_is_light():
    code = (
        "import sys, fastnca\n"
        "heavy = [m for m in ('triton', 'matplotlib') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    # torch itself may look for triton; what counts is what fastnca adds to it
    bare = subprocess.run(
        [sys.executable, "-c", "import sys, torch; print('triton' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert bare.stdout == "False\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_and_rollout_work_without_triton():
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import fastnca, torch\n"
        "fastnca.NeuralCA().run_steps(fastnca.create_seed(8), 2)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    assert set(fastnca.__all__) == {
        "NUM_CHANNELS",
        "RULES",
        "BackendError",
        "FileFormatError",
        "NeuralCA",
        "PerceptionModule",
        "Rule",
        "create_seed",
        "create_target",
        "create_target_circle",
        "game_of_life_step",
        "get_visible_state",
        "import_model",
        "load_target",
        "reference",
        "test_regeneration",
        "train_nca",
        "training",
        "update_mask",
        "use_backend",
        "visualize_growth",
        "visualize_regeneration",
    }
    for name in fastnca.__all__:
        assert getattr(fastnca, name) is not None
    for name in ("NUM_CHANNELS", "NeuralCA", "PerceptionModule", "create_seed"):
        assert hasattr(fastnca.reference, name)
    for name in ("get_visible_state", "create_target_circle", "game_of_life_step"):
        assert hasattr(fastnca.reference, name)


def device_functions():
    """Yield every function of the Triton kernels that others call, with its file's name."""
    for path in sorted((ROOT / "kernels").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.endswith("_kernel"):
                continue
            if any(ast.unparse(each) == "triton.jit" for each in node.decorator_list):
                yield path.name, node


def test_device_functions_have_few_arguments_and_a_docstring():
    found = list(device_functions())
    assert len(found) >= 50
    for file, function in found:
        assert len(function.args.args) <= 8, f"{file}: {function.name}"
        assert ast.get_docstring(function), f"{file}: {function.name}"


@pytest.mark.parametrize("folder", ["fastnca", "kernels", "tests", "bench"])
def test_files_stay_small(folder):
    for path in (ROOT / folder).rglob("*.py"):
        lines = len(path.read_text().splitlines())
        tests = "tests" in path.relative_to(ROOT).parts
        assert lines <= (500 if tests else 300), f"{path}: {lines} lines"


@pytest.mark.parametrize(
    ("folder", "foreign"),
    [
        ("fastnca", {"bench", "tests"}),
        ("kernels", {"bench", "tests"}),
        ("tests", {"bench"}),
        ("bench", {"tests"}),
    ],
)
def test_folders_do_not_import_each_other(folder, foreign):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        ]
        names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
        assert not {name.split(".")[0] for name in names} & foreign, path
