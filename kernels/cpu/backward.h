// Steps backward of one grid: undo each step, differentiate it on the cells that it updated.
//
// With g = ∂L/∂s' of one step: ∂L/∂ŝ = g ⊙ alive, ∂L/∂s = ∂L/∂ŝ + Σₖ Fₖᵀ ∂L/∂pₖ, Fₖ being the
// perception filters. No gradient flows through the alive tests, so only cells that were updated
// and are alive after the step have something to send.
#pragma once

#include <cstdint>

#include "network.h"
#include "record.h"
#include "threads.h"

namespace fastnca {

template <typename T>
class Differentiator {
  public:
    Differentiator(const Grid &grid, const Weights<T> &weights)
        : grid_(grid),
          weights_(weights),
          tile_(weights),
          rows_(grid.rows() * weights.stride),
          grad_(grid.rows() * weights.stride),
          live_(grid.height * grid.width) {}

    // Differentiate a rollout.
    //
    // pieces: where the memory of `kept` lies.
    // grad: gradient of the last state, [C, H, W].
    // sums: where the gradients of the weights are added; null if they are not wanted.
    // grad_state: where the gradient of the first state goes; null if it is not wanted.
    // Returns OUT_OF_RANGE if `grad` is not finite: masking would hide that in cells that are dead.
    // Returns DAMAGED if the memory does not hold cells where it was left to hold them.
    Status run(const Kept &kept, const uint8_t *const *pieces, const T *grad, Sums<T> *sums,
               T *grad_state) {
        const int64_t stride = weights_.stride, steps = static_cast<int64_t>(kept.records.size());
        if (!finite(grad, weights_.channels * grid_.height * grid_.width)) return OUT_OF_RANGE;
        pieces_ = pieces;
        std::fill(rows_.begin(), rows_.end(), T(0));
        if (!kept.lines.empty())
            std::memcpy(rows_.data() + grid_.cell(kept.lines.top, 0) * stride,
                        kept.rows.in<T>(pieces), grid_.size(kept.lines) * stride * sizeof(T));
        to_rows(grid_, weights_.channels, stride, grad, grad_.data());
        mask({1, grid_.height}, kept.records[steps - 1]);
        for (int64_t step = steps - 1; step >= 0; --step) {
            const Record &record = kept.records[step];
            if (!inside(record, record.count, record.cells) ||
                !inside(record, record.gone, record.gone_cells))
                return DAMAGED;
            undo(record);
            const bool further = step > 0 || grad_state;
            if (further || sums) differentiate(record, sums, further);
            if (step > 0) mask(record.lines.widened(1, grid_), kept.records[step - 1]);
        }
        if (grad_state) to_state(grid_, weights_.channels, stride, grad_.data(), grad_state);
        return DONE;
    }

  private:
    static bool finite(const T *values, int64_t count) {
        int64_t wrong = 0;
        for (int64_t i = 0; i < count; ++i) wrong += !(values[i] - values[i] == 0);
        return wrong == 0;
    }

    // Tell whether cells lie in the lines of a record; the caller may have changed their memory.
    bool inside(const Record &record, int64_t count, const Place &cells) const {
        if (count == 0) return true;
        const int32_t *rows = cells.in<int32_t>(pieces_);
        const int64_t first = grid_.cell(record.lines.top, 1);
        const int64_t last = grid_.cell(record.lines.bottom, grid_.width);
        int64_t wrong = 0;
        for (int64_t i = 0; i < count; ++i) wrong += rows[i] < first || rows[i] > last;
        return wrong == 0;
    }

    // Return the flags of a record such that a row's is at its number.
    const uint8_t *alive(const Record &record) const {
        return record.alive.in<uint8_t>(pieces_) - grid_.cell(record.lines.top, 0);
    }

    // Turn the rows after a step into those before it, bit for bit.
    void undo(const Record &record) {
        put(record.count, record.cells, record.old);
        put(record.gone, record.gone_cells, record.gone_old);
    }

    void put(int64_t count, const Place &cells, const Place &values) {
        if (count == 0) return;  // there may be no memory at all
        const int64_t stride = weights_.stride;
        const int32_t *rows = cells.in<int32_t>(pieces_);
        const T *from = values.in<T>(pieces_);
        for (int64_t i = 0; i < count; ++i)
            copy_row(stride, from + i * stride, rows_.data() + rows[i] * stride);
    }

    // Clear the gradients of cells in `lines` that are not alive after the step of `record`.
    void mask(const Lines &lines, const Record &record) {
        const int64_t stride = weights_.stride;
        const uint8_t *flags = record.lines.empty() ? nullptr : alive(record);
        for (int64_t y = lines.top; y <= lines.bottom; ++y) {
            const bool any = record.lines.contains(y);
            for (int64_t row = grid_.cell(y, 1); row <= grid_.cell(y, grid_.width); ++row)
                if (!any || !flags[row]) clear_row(stride, grad_.data() + row * stride);
        }
    }

    // Add what one step sends to the weights and, if `further`, to the state before it.
    void differentiate(const Record &record, Sums<T> *sums, bool further) {
        const int64_t stride = weights_.stride;
        const int64_t count = list_live(record);
        // The gradients are copied first: what tiles send changes those of later ones.
        const int64_t size = (count + count % 2) * stride;
        if (static_cast<int64_t>(grad_delta_.size()) < size) grad_delta_.resize(size);
        for (int64_t i = 0; i < count; ++i)
            copy_row(stride, grad_.data() + live_[i] * stride, grad_delta_.data() + i * stride);
        for (int64_t start = 0; start < count; start += TILE) {
            const int64_t cells = std::min<int64_t>(TILE, count - start);
            const T *sent =
                tile_.differentiate(rows_.data(), grid_.pitch(), live_.data() + start, cells,
                                    grad_delta_.data() + start * stride, sums, further);
            if (!further) continue;
            for (int64_t i = 0; i < cells; ++i)
                send_back(sent + i * weights_.features(), stride, grid_.pitch(),
                          grad_.data() + live_[start + i] * stride);
        }
    }

    // List the cells that a step updated and that are alive after it.
    int64_t list_live(const Record &record) {
        if (record.count == 0) return 0;
        const int32_t *cells = record.cells.in<int32_t>(pieces_);
        const uint8_t *flags = alive(record);
        int64_t count = 0;
        for (int64_t i = 0; i < record.count; ++i) {
            live_[count] = cells[i];
            count += flags[cells[i]] != 0;
        }
        return count;
    }

    const Grid grid_;
    const Weights<T> &weights_;
    const uint8_t *const *pieces_ = nullptr;
    Tile<T> tile_;
    Array<T> rows_, grad_, grad_delta_;
    std::vector<int32_t> live_;
};

}  // namespace fastnca
