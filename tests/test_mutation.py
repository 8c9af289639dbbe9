"""The tool that makes deliberate mistakes: what a pattern matches, and what is refused."""

import re
import shutil
from pathlib import Path

import pytest

import fastnca.kernels
from tests.kernels import mutants as triton
from tests.kernels.variant_mutants import VARIANT_MUTANTS
from tests.mutation import Mutant, mutate
from tests.test_cpp_mutants import MUTANTS, RULE_MUTANTS

KERNELS = Path(fastnca.kernels.__file__).parent
TABLES = {
    "cpp": (KERNELS / "cpu", MUTANTS),
    "cpp, rules": (KERNELS / "cpu", RULE_MUTANTS),
    "triton, rollouts": (KERNELS, triton.MUTANTS),
    "triton, single steps": (KERNELS, triton.SINGLE_MUTANTS),
    "triton, variants": (KERNELS, VARIANT_MUTANTS),
}

PYTHON = '''
def first(s, mask):
    """s_new = s + mask * delta"""
    delta = network(s, bias=(1, 2))  # s_new = s + mask * delta
    s_new = s + mask * delta
    return s_new


@jit
def second(state, m):
    update = network(
        state,  # the same
        bias=(1, 2),
    )
    return (
        state
        + m * update
    )
'''

CPP = """
// alive = pre & post;
template <typename T>
uint8_t test(const T *pre, int64_t row) const {
    if (row < 0) { return 0; }
    return pre[row]   /* pre & post */ & post_[row];
}

int64_t other(int64_t row) { return test(&row, row) >> 1; }
"""


def replace(text, suffix, before, after, within=None):
    return mutate(text, Mutant(f"file{suffix}", "", before, after, within))


def changed(text, suffix, before, after, within=None):
    result, count = replace(text, suffix, before, after, within)
    assert count == 1
    return result


@pytest.mark.parametrize("spelling", ["x = a + b", "x=a+b", "x  =  a\n  + b"])
def test_white_space_and_line_breaks_do_not_count(spelling):
    assert replace("x = a + b\n", ".py", spelling, "x = a", None) == ("x = a\n", 1)
    assert replace("x =\\\n a + b\n", ".py", spelling, "x = a", None) == ("x = a\n", 1)


def test_comments_and_strings_do_not_count():
    assert "s_new = s - mask" in changed(PYTHON, ".py", "s + mask * delta", "s - mask", "first")
    assert "return post_[row];" in changed(CPP, ".h", "$a[$row] & post_[$row]", "post_[$row]")


@pytest.mark.parametrize("name", ["s", "mask", "delta", "s_new"])
def test_a_renamed_variable_is_found(name):
    def rename(text):
        return re.sub(rf"\b{name}\b", "renamed", text)

    pattern = ("$new = $s + $m * $delta", "$new = $s + $delta")
    result = changed(rename(PYTHON), ".py", *pattern, "first")
    assert result == rename(changed(PYTHON, ".py", *pattern, "first"))


def test_a_name_is_the_same_wherever_it_occurs():
    assert replace("f(a, b); f(c, c);", ".h", "f($x, $x)", "g($x)") == ("f(a, b); g(c);", 1)
    assert replace("f(a, b); f(c, c);", ".h", "f($x, $y)", "g($x)")[1] == 2
    assert replace("f(g(1), g(1))", ".py", "f($$x, $$x)", "f($$x)") == ("f(g(1))", 1)


def test_an_identifier_is_no_expression():
    assert replace("f(a + 1)", ".py", "f($x)", "g($x)") == ("f(a + 1)", 0)
    assert replace("f(a + 1)", ".py", "f($$x)", "g($$x)") == ("g(a + 1)", 1)


def test_an_expression_has_balanced_brackets():
    found = changed(PYTHON, ".py", "network($$state, bias=$$bias)", "network($$bias)", "first")
    assert "delta = network((1, 2))  #" in found
    assert replace("f(a[1], (b, c)) + d)", ".py", "f($$x)", "$$x") == ("a[1], (b, c) + d)", 1)


def test_an_expression_stays_in_one_statement():
    assert replace("a = f(x)\nb = g(x)\n", ".py", "a = $$x(x) b", "", None)[1] == 1
    assert replace("a = f(x)\nb = g(x)\n", ".py", "a = $$x g", "", None)[1] == 0
    assert replace("a = f(x,\n  y)\n", ".py", "a = $$x y", "", None)[1] == 0
    assert replace("a = f; b = g;", ".h", "a = $$x g", "", None)[1] == 0


def test_several_statements_are_skipped():
    pattern = "$delta = network($$a) $$$rest return $new"
    result = changed(PYTHON, ".py", pattern, "$$$rest\nreturn $delta", "first")
    assert result == PYTHON.replace("return s_new", "return delta", 1).replace(
        "delta = network(s, bias=(1, 2))  # s_new = s + mask * delta\n    ", "", 1
    )
    result = changed(CPP, ".h", "($row < 0) $$$body post_", "(1) $$$body post_", "test")
    assert result == CPP.replace("row < 0", "1")


def test_statements_keep_their_indentation():
    result = changed(PYTHON, ".py", "$new = $$sum return $new", "$new = 0\nreturn $$sum", "first")
    assert "    s_new = 0\n    return s + mask * delta\n" in result


def test_a_function_is_looked_in_alone():
    assert replace(PYTHON, ".py", "$s + $m * $delta", "$s")[1] == 2
    assert "state\n        + m" in changed(PYTHON, ".py", "$s + $m * $delta", "$s", "first")
    assert "s + mask" in changed(PYTHON, ".py", "$s + $m * $delta", "$s", "second")
    assert replace(CPP, ".h", "return $$x;", "return 1;")[1] == 3
    assert "{ return 1; }" in changed(CPP, ".h", "return $$x;", "return 1;", "other")
    assert replace(CPP, ".h", "return $$x;", "return 1;", "test")[1] == 2
    assert replace(CPP, ".h", "return $$x;", "return 1;", "third")[1] == 0


def test_operators_are_whole():
    assert replace("a >> 1", ".h", "$a > $$b", "")[1] == 0
    assert replace("a <= b", ".py", "$a < $$b", "")[1] == 0


def test_a_mutant_changes_its_file(tmp_path):
    (tmp_path / "step.h").write_text(CPP)
    mutant = Mutant("step.h", "E7", "$pre[$row] & post_[$row]", "$pre[$row]", "test")
    mutant.apply("test dropped", tmp_path)
    assert (tmp_path / "step.h").read_text() == CPP.replace(
        "pre[row]   /* pre & post */ & post_[row]", "pre[row]"
    )


@pytest.mark.parametrize(("pattern", "count"), [("post_[$x + 1]", 0), ("[row]", 2)])
def test_a_mutant_without_one_match_is_refused(tmp_path, pattern, count):
    (tmp_path / "step.h").write_text(CPP)
    mutant = Mutant("step.h", "E7", pattern, "", "test")
    with pytest.raises(
        AssertionError, match=f"mutant 'a name': {count} matches .* in step.h, test"
    ):
        mutant.apply("a name", tmp_path)
    assert (tmp_path / "step.h").read_text() == CPP


@pytest.mark.parametrize("table", TABLES)
def test_all_mutants_of_the_kernels_match_once(table, tmp_path):
    folder, mutants = TABLES[table]
    for name, mutant in mutants.items():
        shutil.copy(folder / mutant.file, tmp_path)
        mutant.apply(name, tmp_path)
        changed = (tmp_path / mutant.file).read_text()
        if mutant.file.endswith(".py"):
            compile(changed, mutant.file, "exec")
        assert changed != (folder / mutant.file).read_text()
