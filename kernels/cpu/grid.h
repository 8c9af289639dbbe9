// One padded grid: states as rows of channels, flags as planes of bytes.
//
// A grid of H x W cells has a margin of one cell on every side, which holds zeros or what the
// rule's padding shows there; cell (y, x), counted from 1, is row y*(W+2) + x, and its eight
// neighbours are rows at fixed distances. A row holds the channels and zeros up to whole vectors.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "rule.h"
#include "vectors.h"

namespace fastnca {

struct Lines;

struct Grid {
    int64_t height, width;
    Padding padding;

    int64_t pitch() const { return width + 2; }
    int64_t rows() const { return (height + 2) * pitch(); }
    int64_t cell(int64_t y, int64_t x) const { return y * pitch() + x; }
    int64_t size(const Lines &lines) const;
    Lines all() const;

    // The one of `count` lines, or columns, that the margin before the first of them shows.
    int64_t shown_before(int64_t count) const {
        return padding == CIRCULAR ? count : padding == REFLECT ? 2 : 1;
    }
    // The one that the margin after the last of them shows.
    int64_t shown_after(int64_t count) const {
        return padding == CIRCULAR ? 1 : padding == REFLECT ? count - 1 : count;
    }
};

// A range of lines of a grid, both ends included; empty if `top` is below `bottom`.
struct Lines {
    int64_t top, bottom;

    bool empty() const { return top > bottom; }
    bool contains(int64_t y) const { return top <= y && y <= bottom; }
    // On a torus, a range that comes to a border becomes all lines.
    Lines widened(int64_t by, const Grid &grid) const {
        if (empty()) return *this;
        const bool around = top - by <= 1 || bottom + by >= grid.height;
        if (grid.padding == CIRCULAR && around) return grid.all();
        return {std::max<int64_t>(1, top - by), std::min(grid.height, bottom + by)};
    }
};

inline Lines Grid::all() const {
    return {1, height};
}

// Number of rows of some lines, margins included.
inline int64_t Grid::size(const Lines &lines) const {
    return (lines.bottom - lines.top + 1) * pitch();
}

// One flag per row of a grid, with guards at both ends so that it can be dilated.
class Plane {
  public:
    explicit Plane(const Grid &grid) : guard_(grid.pitch() + 1), flags_(grid.rows() + 2 * guard_) {}
    uint8_t *data() { return flags_.data() + guard_; }
    const uint8_t *data() const { return flags_.data() + guard_; }
    uint8_t &operator[](int64_t row) { return data()[row]; }
    uint8_t operator[](int64_t row) const { return data()[row]; }

  private:
    int64_t guard_;
    std::vector<uint8_t> flags_;
};

// E2 and E7: write into lines `top` to `bottom` of `out`, margins included, whether a flag of the
// 3x3 neighbourhood is set. A cell of the margin may come out set; the two margin cells between the
// ends of adjacent lines keep that from reaching a cell of the grid, also by a second dilation.
inline void dilate(const Grid &grid, const Plane &in, Plane &out, int64_t top, int64_t bottom) {
    const int64_t pitch = grid.pitch();
    for (int64_t y = top; y <= bottom; ++y) {
        const uint8_t *above = in.data() + (y - 1) * pitch, *here = above + pitch,
                      *below = here + pitch;
        uint8_t *to = out.data() + y * pitch;
        for (int64_t x = 0; x < pitch; ++x)
            to[x] = above[x - 1] | above[x] | above[x + 1] | here[x - 1] | here[x] | here[x + 1] |
                    below[x - 1] | below[x] | below[x + 1];
    }
}

template <typename T>
void copy_row(int64_t count, const T *from, T *to) {
    std::memcpy(to, from, count * sizeof(T));
}

template <typename T>
void clear_row(int64_t count, T *row) {
    std::memset(row, 0, count * sizeof(T));
}

// Copy into the margins of `rows` [N, stride] what the padding shows there (E1); zeros stay.
template <typename T>
void fill_margins(const Grid &grid, int64_t stride, T *rows) {
    if (grid.padding == ZEROS) return;
    const int64_t left = grid.shown_before(grid.width), right = grid.shown_after(grid.width);
    const auto copy = [&](int64_t count, int64_t from, int64_t to) {
        copy_row(count * stride, rows + from * stride, rows + to * stride);
    };
    for (int64_t y = 1; y <= grid.height; ++y) {
        copy(1, grid.cell(y, left), grid.cell(y, 0));
        copy(1, grid.cell(y, right), grid.cell(y, grid.width + 1));
    }
    copy(grid.pitch(), grid.cell(grid.shown_before(grid.height), 0), grid.cell(0, 0));
    copy(grid.pitch(), grid.cell(grid.shown_after(grid.height), 0), grid.cell(grid.height + 1, 0));
}

// The transpose of `fill_margins` (E12): add what the margins hold to the cells that they show, and
// clear the margins.
template <typename T>
void fold_margins(const Grid &grid, int64_t stride, T *rows) {
    if (grid.padding == ZEROS) return;
    const int64_t left = grid.shown_before(grid.width), right = grid.shown_after(grid.width);
    const auto add = [&](int64_t count, int64_t from, int64_t to) {
        for (int64_t i = 0; i < count * stride; ++i) {
            rows[to * stride + i] += rows[from * stride + i];
            rows[from * stride + i] = 0;
        }
    };
    add(grid.pitch(), grid.cell(0, 0), grid.cell(grid.shown_before(grid.height), 0));
    add(grid.pitch(), grid.cell(grid.height + 1, 0), grid.cell(grid.shown_after(grid.height), 0));
    for (int64_t y = 1; y <= grid.height; ++y) {
        add(1, grid.cell(y, 0), grid.cell(y, left));
        add(1, grid.cell(y, grid.width + 1), grid.cell(y, right));
    }
}

// Copy a contiguous state [C, H, W] into the rows [N, stride] of a grid, whose rest is zero.
template <typename T>
void to_rows(const Grid &grid, int64_t channels, int64_t stride, const T *state, T *rows) {
    for (int64_t y = 0; y < grid.height; ++y)
        for (int64_t c = 0; c < channels; ++c) {
            const T *from = state + (c * grid.height + y) * grid.width;
            T *to = rows + grid.cell(y + 1, 1) * stride + c;
            for (int64_t x = 0; x < grid.width; ++x) to[x * stride] = from[x];
        }
}

// The reverse of `to_rows`.
template <typename T>
void to_state(const Grid &grid, int64_t channels, int64_t stride, const T *rows, T *state) {
    for (int64_t y = 0; y < grid.height; ++y)
        for (int64_t c = 0; c < channels; ++c) {
            const T *from = rows + grid.cell(y + 1, 1) * stride + c;
            T *to = state + (c * grid.height + y) * grid.width;
            for (int64_t x = 0; x < grid.width; ++x) to[x] = from[x * stride];
        }
}

}  // namespace fastnca
