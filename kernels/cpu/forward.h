// Steps forward of one grid, on its active cells.
//
// Let D be the 3x3 dilation and pre = D(alpha > threshold). A cell outside pre ends the step at
// zero, but its updated alpha can keep a neighbour in pre alive; so the network is evaluated where
// mask AND D(pre). Lines far from everything that is not zero are not looked at.
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

// The updated values of lists of cells, with the memory that computing them takes.
template <typename T>
class Updater {
  public:
    explicit Updater(const Weights<T> &weights)
        : weights_(weights), tile_(weights), delta_(TILE * weights.stride) {}

    // Write the updated rows of `count` cells into `fresh` [count, stride].
    Status operator()(const Grid &grid, const T *rows, const int32_t *cells, int64_t count,
                      T *fresh) {
        const int64_t stride = weights_.stride;
        for (int64_t start = 0; start < count; start += TILE) {
            const int64_t size = std::min<int64_t>(TILE, count - start);
            tile_.delta(rows, grid.pitch(), cells + start, size, delta_.data());
            for (int64_t i = start; i < start + size; ++i)
                for (int64_t c = 0; c < stride; ++c)
                    fresh[i * stride + c] =
                        rows[cells[i] * stride + c] + delta_[(i - start) * stride + c];
        }
        return in_range(sum_of_squares(fresh, count * stride)) ? DONE : OUT_OF_RANGE;
    }

  private:
    const Weights<T> &weights_;
    Tile<T> tile_;
    Array<T> delta_;
};

template <typename T>
class Stepper {
  public:
    // arena: where records go; null if none are wanted.
    // threads: how many may share a step.
    Stepper(const Grid &grid, const Weights<T> &weights, T threshold, Arena *arena, int64_t threads)
        : grid_(grid),
          weights_(weights),
          threshold_(threshold),
          arena_(arena),
          threads_(threads),
          updater_(weights),
          rows_(grid.rows() * weights.stride),
          visible_(grid),
          occupied_(grid),
          pre_(grid),
          reach_(grid),
          near_(grid),
          updated_(grid),
          post_(grid),
          cells_(grid.height * grid.width) {}

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
                for (int64_t c = 0; c < stride; ++c) any |= values[c] != 0;
                occupied_[row] = any;
                visible_[row] = values[ALPHA] > threshold_;
                if (any) cover(y);
            }
    }

    // Write the state, [C, H, W], and keep the last rows for the backward pass.
    void leave(T *state, Kept *kept) {
        const int64_t stride = weights_.stride;
        to_state(grid_, weights_.channels, stride, rows_.data(), state);
        if (!kept || lines_.empty()) return;
        kept->lines = lines_;
        const int64_t size = grid_.size(lines_) * stride;
        std::copy_n(rows_.data() + grid_.cell(lines_.top, 0) * stride, size,
                    arena_->take<T>(size, kept->rows));
    }

    // DONE while all values are in the range where active cells are exact.
    Status status() const { return status_; }

    // The lines in which the next step may update a cell, for which it needs a mask.
    Lines lines() const { return lines_.widened(2, grid_); }

    // Advance by one step.
    //
    // mask: flag of the first cell of the first of `lines()`, the others following without
    //     margins; null updates every cell.
    Record step(const uint8_t *mask) {
        Record record;
        record.lines = lines();
        if (record.lines.empty()) return record;
        dilate(grid_, visible_, pre_, record.lines.top - 1, record.lines.bottom + 1);
        dilate(grid_, pre_, reach_, record.lines.top, record.lines.bottom);
        record.count = list_cells(record.lines, mask);
        if (arena_) keep_cells(record);
        update(record.count);
        settle(record);
        return record;
    }

  private:
    static constexpr int64_t PART = 8 * TILE;  // cells that a thread takes at once
    static constexpr int64_t MANY_PARTS = 16;  // more are worth threads of their own

    void forget_lines() { lines_ = {grid_.height + 1, 0}; }

    void cover(int64_t y) {
        lines_.top = std::min(lines_.top, y);
        lines_.bottom = std::max(lines_.bottom, y);
    }

    // Flag and list the cells whose update is needed.
    int64_t list_cells(const Lines &lines, const uint8_t *mask) {
        int64_t count = 0;
        for (int64_t y = lines.top; y <= lines.bottom; ++y) {
            const int64_t first = grid_.cell(y, 1);
            const uint8_t *reach = reach_.data() + first;
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

    void keep_cells(Record &record) {
        const int64_t stride = weights_.stride;
        std::copy_n(cells_.data(), record.count, arena_->take<int32_t>(record.count, record.cells));
        T *old = arena_->take<T>(record.count * stride, record.old);
        for (int64_t i = 0; i < record.count; ++i)
            copy_row(stride, rows_.data() + cells_[i] * stride, old + i * stride);
    }

    // Compute the updated values of the listed cells.
    void update(int64_t count) {
        if (static_cast<int64_t>(fresh_.size()) < count * weights_.stride)
            fresh_.resize(count * weights_.stride);
        const auto part = [&](Updater<T> &updater, int64_t start) {
            const int64_t size = std::min(PART, count - start), row = start * weights_.stride;
            return updater(grid_, rows_.data(), cells_.data() + start, size, fresh_.data() + row);
        };
        const int64_t parts = (count + PART - 1) / PART;
        if (threads_ <= 1 || parts <= MANY_PARTS) {
            for (int64_t i = 0; i < parts && status_ == DONE; ++i)
                status_ = part(updater_, i * PART);
            return;
        }
        status_ = share(parts, threads_, [&] {
            return [&, updater = Updater<T>(weights_)](int64_t i) mutable {
                return part(updater, i * PART);
            };
        });
    }

    // Write the updated values of what is alive after the update, and clear what is not.
    void settle(Record &record) {
        const int64_t stride = weights_.stride;
        const Lines lines = record.lines;
        const int64_t start = grid_.cell(lines.top - 1, 0), end = grid_.cell(lines.bottom + 2, 0);
        std::memcpy(updated_.data() + start, visible_.data() + start, end - start);
        for (int64_t i = 0; i < record.count; ++i)
            updated_[cells_[i]] = fresh_[i * stride + ALPHA] > threshold_;
        dilate(grid_, updated_, post_, lines.top, lines.bottom);

        forget_lines();
        gone_.clear();
        const T *fresh = fresh_.data();
        for (int64_t y = lines.top; y <= lines.bottom; ++y) {
            uint8_t any = 0;
            for (int64_t row = grid_.cell(y, 1); row <= grid_.cell(y, grid_.width); ++row) {
                const uint8_t alive = pre_[row] & post_[row];
                if (near_[row]) {
                    T *values = rows_.data() + row * stride;
                    alive ? copy_row(stride, fresh, values) : clear_row(stride, values);
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
        for (const int32_t row : gone_) clear_row(stride, rows_.data() + row * stride);
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
    const int64_t threads_;
    Updater<T> updater_;
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
