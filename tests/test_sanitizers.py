"""The C++ backend under AddressSanitizer and UndefinedBehaviorSanitizer.

The kernels are compiled with both, and the tests of the backend run on them in a process of their
own; the first report of a sanitizer ends it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastnca.backends.cpp import build

pytestmark = pytest.mark.full

ROOT = Path(__file__).parent.parent
FILES = (
    "test_cpp.py",
    "test_cpp_rules.py",
    "test_active.py",
    "test_masks.py",
    "test_native_fuzz.py",
)
COMPILER = (
    "g++",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-D_GLIBCXX_ASSERTIONS",
    "-D_GLIBCXX_SANITIZE_VECTOR",
    "-g",
)
LOAD = """
import torch
from pathlib import Path
from fastnca.backends.cpp.build import cpp_library
for dtype in (torch.float32, torch.float64):
    assert b"__asan_" in Path(cpp_library(dtype)._name).read_bytes()
"""
FAULTY = """
#include <vector>
extern "C" int beyond_memory(int *) { std::vector<int> some(4); return some.data()[some.size()]; }
extern "C" int beyond_tensor(int *eight) { return eight[8]; }
extern "C" int overflow(int *eight) { return eight[0] + 2147483647; }
extern "C" int beyond_size(int *) { std::vector<int> some(4); some.reserve(8); return some[4]; }
"""
CALL = """
import ctypes, sys, torch
eight = torch.ones(8, dtype=torch.int32)
getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])(ctypes.c_void_p(eight.data_ptr()))
"""
FAULTS = {
    "beyond_memory": "heap-buffer-overflow",
    "beyond_tensor": "heap-buffer-overflow",
    "overflow": "signed integer overflow",
    "beyond_size": "Assertion '__n < this->size()' failed",
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Return the environment variables of a process that runs instrumented kernels."""
    if not shutil.which(COMPILER[0]):
        pytest.skip("there is no g++")
    runtimes = [_runtime(name) for name in ("libasan.so", "libubsan.so")]
    if not all(map(os.path.isabs, runtimes)):
        pytest.skip("g++ comes without sanitizers")
    return {
        **os.environ,
        "CXX": " ".join(COMPILER),
        build.DIRECTORY: str(tmp_path_factory.mktemp("sanitized")),
        "LD_PRELOAD": " ".join(runtimes),  # before Python: they replace its allocator
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python and torch keep much until they end
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _runtime(name):
    command = [COMPILER[0], f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def run(environment, *arguments):
    """Run Python; return its exit status and all that it said."""
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return found.returncode, found.stdout


@pytest.mark.parametrize("name", FAULTS)
def test_a_deliberate_fault_is_reported(environment, tmp_path, name):
    source, library = tmp_path / "faulty.cpp", tmp_path / "faulty.so"
    source.write_text(FAULTY)
    command = [*COMPILER, "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    status, said = run(environment, "-c", CALL, str(library), name)
    assert status != 0
    assert FAULTS[name] in said


def test_the_tests_of_the_backend_pass_without_a_report(environment):
    """Takes five minutes on two cores; the compiler takes half of them."""
    status, said = run(environment, "-c", LOAD)
    assert status == 0, said
    files = [str(path) for name in FILES if (path := ROOT / "tests" / name).is_file()]
    options = ("-q", "-s", "-x", "-k", "not torch]", "-p", "no:cacheprovider")
    status, said = run(environment, "-m", "pytest", *options, *files)
    assert status == 0, said[-20000:]
