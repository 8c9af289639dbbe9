"""The kernels compile without a GPU, and into the machine code that was designed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).parents[2]
COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
COMPILING["PYTHONPATH"] = str(ROOT)
KEYS = {
    "kernel",
    "variant",
    "target",
    "registers",
    "spill_bytes",
    "shared_bytes",
    "tensor_core_instructions",
    "tensor_core_waits",
    "barriers",
    "warp_instructions_per_cell",
}


SHARED_BYTES = {
    "sm_80": 166_912,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
}
"""The most shared memory of a program."""

CONSUMER_GPUS = ("sm_89", "sm_120")
VERSION = triton.__version__
SPILLS: dict[str, int] = {}
"""Bytes that kernels of 16-bit operands are known to spill on sm_90, at most, by variant."""

if VERSION.startswith("3.6."):
    SPILLS = {"fp16-c16-h64": 8, "fp16-c32-h128-eval": 8}
elif VERSION.startswith("3.7."):
    SPILLS = {"fp16-c32-h128-texture": 8}
else:
    SPILLS = {
        "fp16-c16-h64": 24,
        "fp16-c32-h128": 88,
        "fp16-c32-h128-eval": 96,
        "fp16-c32-h128-texture": 32,
    }


def report(folder: Path, *options: str) -> list[dict]:
    file = folder / "report.json"
    command = [sys.executable, "-m", "bench", "kernels", *options, "--json", str(file)]
    subprocess.run(command, cwd=ROOT, env=COMPILING, check=True)
    return json.loads(file.read_text())


def test_the_forward_step_compiles_for_a_gpu(tmp_path: Path) -> None:
    options = ("--precision", "fp16", "--targets", "sm_90", "--kernel", "step_forward")
    found = report(tmp_path, *options, "--variant", "fp16-c16-h128-eval")
    assert {record["kernel"] for record in found} == {"step_forward"}
    assert all(record["tensor_core_instructions"] >= 16 for record in found)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("report")
    return report(folder, "--precision", "fp16", "--targets", "sm_90")


@pytest.mark.long
def test_records_have_the_documented_keys(records: list[dict]) -> None:
    assert all(set(record) == KEYS for record in records)


@pytest.mark.long
def test_half_precision_steps_do_not_spill(records: list[dict]) -> None:
    for record in records:
        assert record["spill_bytes"] <= SPILLS.get(record["variant"], 0), record


@pytest.mark.long
def test_half_precision_steps_use_tensor_cores(records: list[dict]) -> None:
    steps = [r for r in records if r["kernel"].startswith(("step", "single"))]
    steps = [r for r in steps if r["kernel"] != "single_backward_end"]
    assert {r["kernel"] for r in steps} >= {"single_forward", "single_backward"}
    assert len(steps) >= 14
    assert all(r["tensor_core_instructions"] > 0 for r in steps)


@pytest.mark.long
def test_products_follow_one_another(records: list[dict]) -> None:
    """The compiler lets the parts of a product wait if it takes a branch for divergent.

    With four filters the gradient of the first bias is a product more.
    """
    most = {"step_forward": 2, "single_forward": 2, "step_backward": 5, "single_backward": 5}
    found = [r for r in records if r["kernel"] in most]
    assert {r["kernel"] for r in found} == set(most)
    for record in found:
        texture = record["variant"].endswith("texture")
        assert 0 < record["tensor_core_waits"] <= most[record["kernel"]] + texture, record


@pytest.mark.long
@pytest.mark.parametrize(
    ("kernel", "variant", "limit"),
    [
        ("step_forward", "fp16-c16-h128", 36),
        ("step_backward", "fp16-c16-h128", 80 if VERSION.startswith("3.7.") else 82),
        ("single_forward", "fp16-c16-h128", 41),
        ("single_backward", "fp16-c16-h128", 90),
        ("step_forward", "fp16-c16-h128-texture", 45),
        ("step_backward", "fp16-c16-h128-texture", 100),
    ],
)
def test_instructions_per_cell_stay_in_budget(
    records: list[dict], kernel: str, variant: str, limit: float
) -> None:
    (record,) = (r for r in records if r["kernel"] == kernel and r["variant"] == variant)
    assert record["warp_instructions_per_cell"] <= limit
    assert record["spill_bytes"] == 0


@pytest.mark.long
@pytest.mark.parametrize("target", CONSUMER_GPUS)
def test_kernels_fit_consumer_gpus(target: str, tmp_path: Path) -> None:
    chosen = ("--precision", "fp16", "--targets", target, "--variant", "c16-h128")
    found = report(tmp_path, *chosen)
    kernels = {record["kernel"] for record in found}
    assert kernels >= {"step_forward", "step_backward", "single_forward", "single_backward"}
    assert any(record["variant"].endswith("texture") for record in found)
    assert all(record["shared_bytes"] <= SHARED_BYTES[target] for record in found)
    for record in found:
        texture = record["variant"].endswith("texture")
        assert record["spill_bytes"] <= 16 * texture, record


@pytest.mark.full
@pytest.mark.parametrize(
    "chosen",
    [("--rules", "all"), ("--rules", "texture,torus", "--large", "--kernel", "step_")],
    ids=["rules", "sizes"],
)
@pytest.mark.parametrize("target", SHARED_BYTES)
def test_every_variant_fits(target: str, chosen: tuple[str, ...], tmp_path: Path) -> None:
    """Every network that is not refused (`limits.size_reasons`) can be launched."""
    found = report(tmp_path, "--targets", target, *chosen)
    assert found
    assert not [record for record in found if record["shared_bytes"] > SHARED_BYTES[target]]


PTX = """
from bench.kernels.variants import compile_variant, variants
ENDS = ("begin_backward", "end_backward", "reduce_gradients", "single_gradient_end")
for variant in variants("sm_90", rules=("tutorial", "texture")):
    if variant.name.endswith(("c16-h128", "fp16-c16-h128-texture")) or variant.kernel in ENDS:
        ptx = compile_variant(variant, "sm_90").asm["ptx"]
        words = {line.split()[0] for line in ptx.splitlines() if line.strip()}
        print(variant.kernel, variant.name, *(w for w in words if w[:4] in ("max.", "div.")))
"""


@pytest.fixture(scope="module")
def instructions() -> dict[tuple[str, str], list[str]]:
    """Return the maxima and quotients in the PTX of each kernel, by name and variant."""
    command = [sys.executable, "-c", PTX]
    done = subprocess.run(
        command, cwd=ROOT, env=COMPILING, capture_output=True, text=True, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return {(kernel, variant): words for kernel, variant, *words in lines}


EQUAL = ("step_backward", "fp16-c16-h128-texture")


@pytest.mark.long
def test_relu_passes_nan_on(instructions) -> None:
    """A GPU's plain maximum of NaN and 0 is 0; the interpreter's is NaN, so it cannot tell.

    With four filters the gradient of the first bias is a maximum, too, of numbers that are equal.
    """
    networks = ("step_forward", "step_backward", "single_step", "single_gradient")
    found = {key: words for key, words in instructions.items() if key[0] in networks}
    assert len(found) == 14
    for (kernel, variant), words in found.items():
        rectifier = "max.NaN.f16x2" if variant.startswith("fp16") else "max.NaN.f32"
        assert rectifier in words
        plain = {"max.f32", "max.f16x2", "max.f16"} & set(words)
        assert plain <= ({"max.f32"} if (kernel, variant) == EQUAL else set())


def test_scales_are_undone_exactly(instructions) -> None:
    """A quotient of float32 is approximate on a GPU; a product with a power of two is exact."""
    assert {"end_backward", "reduce_gradients"} <= {kernel for kernel, _ in instructions}
    quotients = {word for words in instructions.values() for word in words if word[:4] == "div."}
    assert not [word for word in quotients if word.endswith("f32")]
