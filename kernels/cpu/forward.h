// Steps forward of one grid, on its active cells.
//
// Let D be the 3x3 dilation, so that pre = D(alpha > threshold) in E2. Where a cell must be alive
// before the step, one outside pre ends it at zero (E6). If there is a test after the step too, its
// updated alpha can still keep a neighbour in pre alive (E7); so E3 and E5 are evaluated where mask
// AND D(pre). Lines far from everything that is not zero are not looked at. Without a test before
// the step, every cell of the mask is evaluated.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "network.h"
#include "record.h"
#include "threads.h"

namespace fastnca {

// True unless a value is not finite, or so large that a step could overflow: there 0·∞ = NaN
// spreads through cells that are masked out or dead, which active cells do not see.
template <typename T>
bool in_range(T sum_of_squares, T limit = std::numeric_limits<T>::infinity()) {
    return std::sqrt(sum_of_squares) < limit;
}

template <typename T>
T sum_of_squares(const T *values, int64_t count) {
    constexpr int TOGETHER = 16;
    T sums[TOGETHER] = {}, sum = 0;
    int64_t i = 0;
    for (; i + TOGETHER <= count; i += TOGETHER)
        for (int j = 0; j < TOGETHER; ++j) sums[j] += values[i + j] * values[i + j];
    for (; i < count; ++i) sum += values[i] * values[i];
    for (int j = 0; j < TOGETHER; ++j) sum += sums[j];
    return sum;
}

template <typename T>
class Stepper {
  public:
    // arena: where records go; null if none are wanted.
    Stepper(const Grid &grid, const Weights<T> &weights, Arena *arena, Team &team)
        : grid_(grid),
          weights_(weights),
          threshold_(static_cast<T>(weights.rule.threshold)),
          arena_(arena),
          team_(team),
          tiles_(make_tiles(weights, team.size())),
          rows_(grid.rows() * weights.stride),
          visible_(grid),
          occupied_(grid),
          pre_(grid),
          reach_(grid),
          near_(grid),
          updated_(grid),
          post_(grid),
          cells_(grid.height * grid.width) {
        for (Plane *plane : {&pre_, &reach_, &post_})  // as they stay where there is no test
            for (int64_t y = 1; y <= grid.height; ++y)
                std::fill_n(plane->data() + grid.cell(y, 1), grid.width, uint8_t(1));
    }

    // Take the first state, [C, H, W].
    void enter(const T *state) {
        const int64_t stride = weights_.stride;
        to_rows(grid_, weights_.channels, stride, state, rows_.data());
        if (!in_range(sum_of_squares(rows_.data(), static_cast<int64_t>(rows_.size()))))
            status_ = OUT_OF_RANGE;
        forget_lines();
        for (int64_t y = 1; y <= grid_.height; ++y)
            for (int64_t row = grid_.cell(y, 1); row <= grid_.cell(y, grid_.width); ++row) {
                const T *values = rows_.data() + row * stride;
                bool any = false;
                for (int64_t c = 0; c < weights_.own; ++c) any |= values[c] != 0;
                occupied_[row] = any;
                visible_[row] = values[ALPHA] > threshold_;
                if (any) cover(y);
            }
    }

    // Write the state, [C, H, W], and keep the last rows for the backward pass.
    void leave(T *state, Kept *kept) {
        const int64_t stride = weights_.stride;
        to_state(grid_, weights_.channels, stride, rows_.data(), state);
        if (!kept) return;
        const bool everywhere = !weights_.rule.tests() || weights_.rule.inputs > 0;
        const Lines lines = kept->lines = everywhere ? grid_.all() : lines_;
        if (lines.empty()) return;
        const int64_t size = grid_.size(lines) * stride;
        std::copy_n(rows_.data() + grid_.cell(lines.top, 0) * stride, size,
                    arena_->take<T>(size, kept->rows));
    }

    // DONE while all values are in the range where active cells are exact.
    Status status() const { return status_; }

    // The lines in which the next step may update a cell, for which it needs a mask.
    Lines lines() const { return weights_.rule.before ? lines_.widened(2, grid_) : grid_.all(); }

    // Advance by one step.
    //
    // mask: flag of the first cell of the first of `lines()`, the others following without
    //     margins; null updates every cell.
    Record step(const uint8_t *mask) {
        Record record;
        record.lines = lines();
        if (record.lines.empty()) return record;
        const bool before = weights_.rule.before, after = weights_.rule.after;
        if (before) spread(visible_, pre_, record.lines.top - 1, record.lines.bottom + 1);  // E2
        if (before && after) spread(pre_, reach_, record.lines.top, record.lines.bottom);
        const Plane &reach = before && !after ? pre_ : reach_;
        record.count = list_cells(reach, record.lines, mask);
        fill_margins(grid_, weights_.stride, rows_.data());
        update(record);
        weights_.rule.tests() ? settle(record) : take_over(record);
        return record;
    }

  private:
    static constexpr int64_t PART = 4 * TILE;  // cells that a thread takes at once

    void forget_lines() { lines_ = {grid_.height + 1, 0}; }

    void cover(int64_t y) {
        lines_.top = std::min(lines_.top, y);
        lines_.bottom = std::max(lines_.bottom, y);
    }

    // Dilate flags, on a torus also across the border.
    void spread(Plane &in, Plane &out, int64_t top, int64_t bottom) {
        if (grid_.padding == CIRCULAR) fill_margins(grid_, 1, in.data());
        dilate(grid_, in, out, top, bottom);
    }

    // Flag and list the cells whose update is needed: those of the mask m of E5, within `within`.
    int64_t list_cells(const Plane &within, const Lines &lines, const uint8_t *mask) {
        int64_t count = 0;
        for (int64_t y = lines.top; y <= lines.bottom; ++y) {
            const int64_t first = grid_.cell(y, 1);
            const uint8_t *reach = within.data() + first;
            uint8_t *near = near_.data() + first;
            for (int64_t x = 0; x < grid_.width; ++x) near[x] = reach[x] & (mask ? mask[x] : 1);
            for (int64_t x = 0; x < grid_.width; ++x) {
                cells_[count] = static_cast<int32_t>(first + x);
                count += near[x];
            }
            if (mask) mask += grid_.width;
        }
        return count;
    }

    // E5: compute the updated values ŝ of the listed cells, and keep what they replace.
    void update(Record &record) {
        const int64_t count = record.count, stride = weights_.stride;
        if (static_cast<int64_t>(fresh_.size()) < count * stride) fresh_.resize(count * stride);
        T *old = nullptr;
        if (arena_) {
            std::copy_n(cells_.data(), count, arena_->take<int32_t>(count, record.cells));
            old = arena_->take<T>(count * stride, record.old);
        }
        status_ = in_parts(count, [&](int64_t member, int64_t start, int64_t end) {
            for (int64_t i = start; old && i < end; ++i)
                copy_row(stride, rows_.data() + cells_[i] * stride, old + i * stride);
            for (int64_t i = start; i < end; i += TILE)
                tiles_[member].update(rows_.data(), grid_.pitch(), cells_.data() + i,
                                      std::min<int64_t>(TILE, end - i), fresh_.data() + i * stride);
            T *fresh = fresh_.data() + start * stride;
            if (!in_range(sum_of_squares(fresh, (end - start) * stride))) return OUT_OF_RANGE;
            if (weights_.rule.clamped) clamp(fresh, end - start);
            return DONE;
        });
    }

    // Call work(member, start, end) for parts of `count` cells.
    template <typename Work>
    Status in_parts(int64_t count, const Work &work) {
        return team_.run((count + PART - 1) / PART, [&](int64_t member, int64_t part) {
            return work(member, part * PART, std::min(count, (part + 1) * PART));
        });
    }

    void clamp(T *fresh, int64_t count) const {
        const T low = static_cast<T>(weights_.rule.low), high = static_cast<T>(weights_.rule.high);
        for (int64_t i = 0; i < count; ++i, fresh += weights_.stride)
            for (int64_t c = 0; c < weights_.own; ++c)
                fresh[c] = std::min(std::max(fresh[c], low), high);
    }

    // Write all updated values: s' = ŝ where there is no alive test.
    void take_over(const Record &record) {
        const int64_t stride = weights_.stride;
        in_parts(record.count, [&](int64_t, int64_t start, int64_t end) {
            for (int64_t i = start; i < end; ++i)
                copy_row(stride, fresh_.data() + i * stride, rows_.data() + cells_[i] * stride);
            return DONE;
        });
    }

    // E6 and E7: write the updated values of what is alive after the update, and clear what is not.
    void settle(Record &record) {
        const int64_t stride = weights_.stride;
        const Lines lines = record.lines;
        const int64_t start = grid_.cell(lines.top - 1, 0), end = grid_.cell(lines.bottom + 2, 0);
        std::memcpy(updated_.data() + start, visible_.data() + start, end - start);
        for (int64_t i = 0; i < record.count; ++i)
            updated_[cells_[i]] = fresh_[i * stride + ALPHA] > threshold_;  // the flag of E5
        if (weights_.rule.after) spread(updated_, post_, lines.top, lines.bottom);  // E7

        forget_lines();
        gone_.clear();
        const T *fresh = fresh_.data();
        for (int64_t y = lines.top; y <= lines.bottom; ++y) {
            uint8_t any = 0;
            for (int64_t row = grid_.cell(y, 1); row <= grid_.cell(y, grid_.width); ++row) {
                const uint8_t alive = pre_[row] & post_[row];  // E6, E7
                if (near_[row]) {
                    T *values = rows_.data() + row * stride;
                    alive ? copy_row(stride, fresh, values) : clear_row(weights_.own, values);
                    fresh += stride;
                } else if (occupied_[row] > alive) {
                    gone_.push_back(static_cast<int32_t>(row));
                }
                occupied_[row] = alive;
                visible_[row] = updated_[row] & alive;
                any |= alive;
            }
            if (any) cover(y);
        }
        if (arena_) keep_gone(record);
        for (const int32_t row : gone_) clear_row(weights_.own, rows_.data() + row * stride);
    }

    void keep_gone(Record &record) {
        const int64_t stride = weights_.stride, flags = grid_.size(record.lines);
        record.gone = static_cast<int64_t>(gone_.size());
        std::copy_n(gone_.data(), record.gone,
                    arena_->take<int32_t>(record.gone, record.gone_cells));
        T *old = arena_->take<T>(record.gone * stride, record.gone_old);
        for (int64_t i = 0; i < record.gone; ++i)
            copy_row(stride, rows_.data() + gone_[i] * stride, old + i * stride);
        std::copy_n(occupied_.data() + grid_.cell(record.lines.top, 0), flags,
                    arena_->take<uint8_t>(flags, record.alive));
    }

    const Grid grid_;
    const Weights<T> &weights_;
    const T threshold_;
    Arena *arena_;
    Team &team_;
    std::vector<Tile<T>> tiles_;  // one per member of the team
    Array<T> rows_, fresh_;
    // Before the step: alpha above the threshold; rows that may hold something. During it: the
    // cells that may be alive afterwards; those that can matter; those of them that update; alpha
    // above the threshold after the update; the cells that it keeps alive.
    Plane visible_, occupied_, pre_, reach_, near_, updated_, post_;
    std::vector<int32_t> cells_, gone_;
    Lines lines_{1, 0};  // those that hold something
    Status status_ = DONE;
};

}  // namespace fastnca
