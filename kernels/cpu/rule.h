// The rule of a cellular automaton, `fastnca/rule.py`, as far as these kernels compute it. `E1` to
// `E12` in comments are the equations of `docs/equations.md`.
#pragma once

#include <cstdint>

namespace fastnca {

constexpr int MOST_FILTERS = 4, TAPS = 9, ALPHA = 3;

enum Padding : int64_t { ZEROS, CIRCULAR, REFLECT, REPLICATE };

// `fastnca/backends/cpp/rules.py` mirrors it.
struct Rule {
    int64_t filters;
    double taps[MOST_FILTERS][TAPS];  // rows from top to bottom, each from left to right
    Padding padding;
    int64_t before, after;  // whether a cell must be alive before a step, and after it
    double threshold;       // of a living alpha, exclusive
    int64_t inputs;         // channels, the last ones, that no step writes
    int64_t clamped;        // whether updated values are limited to `low` and `high`
    double low, high;
    double step_size;

    bool tests() const { return before || after; }
};

}  // namespace fastnca
