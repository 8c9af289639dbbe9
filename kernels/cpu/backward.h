// Steps backward of one grid: undo each step, differentiate it on the cells that it updated.
//
// A step is E8 to E12. No gradient flows through the alive tests, so only cells that were updated
// and are alive after the step have something to send: there δ of E9 is not zero.
//
// What large grids send to the weights is summed in several slots, which depend on the size of the
// grid alone. Every row of the state's gradient receives its parts in the order of the cells that
// send them. So threads that share a step change no bit.
#pragma once

#include <cstdint>

#include "network.h"
#include "record.h"
#include "threads.h"

namespace fastnca {

constexpr int64_t CELLS_OF_SLOT = 2048, MOST_SLOTS = 32;
constexpr int64_t SMALL = 64 * 64;  // cells of the tutorial's grid, whose sums are not divided

// Number of sums of weight gradients into which a step of a grid goes.
inline int64_t slots(const Grid &grid) {
    const int64_t cells = grid.height * grid.width;
    return cells <= SMALL ? 1 : std::min(cells / CELLS_OF_SLOT, MOST_SLOTS);
}

template <typename T>
class Differentiator {
  public:
    Differentiator(const Grid &grid, const Weights<T> &weights, Team &team)
        : grid_(grid),
          weights_(weights),
          team_(team),
          tiles_(make_tiles(weights, team.size())),
          rows_(grid.rows() * weights.stride),
          grad_(grid.rows() * weights.stride),
          live_(grid.height * grid.width) {}

    // Differentiate a rollout.
    //
    // pieces: where the memory of `kept` lies.
    // grad: gradient of the last state, [C, H, W].
    // sums: `slots(grid)` of them, to which the gradients of the weights are added; null if they
    //     are not wanted.
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
        mask(grid_.all(), kept.records[steps - 1]);
        for (int64_t step = steps - 1; step >= 0; --step) {
            const Record &record = kept.records[step];
            if (!inside(record, record.count, record.cells) ||
                !inside(record, record.gone, record.gone_cells))
                return DAMAGED;
            undo(record);
            fill_margins(grid_, stride, rows_.data());
            const bool further = step > 0 || grad_state;
            if (further || sums) {
                const Status status = differentiate(record, sums, further);
                if (status != DONE) return status;
            }
            if (step > 0) mask(record.lines.widened(1, grid_), kept.records[step - 1]);
        }
        if (grad_state) to_state(grid_, weights_.channels, stride, grad_.data(), grad_state);
        return DONE;
    }

  private:
    static constexpr int64_t TILES_OF_CHUNK = 4;  // fewest, where a step is divided
    static constexpr int64_t BAND = 4;            // lines whose gradients a thread adds up at once

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

    // E8: clear the gradients of cells in `lines` that are not alive after the step of `record`,
    // but not those of inputs.
    void mask(const Lines &lines, const Record &record) {
        if (!weights_.rule.tests()) return;
        const uint8_t *flags = record.lines.empty() ? nullptr : alive(record);
        for (int64_t y = lines.top; y <= lines.bottom; ++y) {
            const bool any = record.lines.contains(y);
            for (int64_t row = grid_.cell(y, 1); row <= grid_.cell(y, grid_.width); ++row)
                if (!any || !flags[row])
                    clear_row(weights_.own, grad_.data() + row * weights_.stride);
        }
    }

    // Add what one step sends to the weights (E9, E10) and, if `further`, to the state before it
    // (E11, E12).
    Status differentiate(const Record &record, Sums<T> *sums, bool further) {
        const int64_t stride = weights_.stride, features = weights_.feature_stride;
        const int64_t count = list_live(record), tiles = (count + TILE - 1) / TILE;
        const int64_t chunks = std::clamp<int64_t>(tiles / TILES_OF_CHUNK, 1, slots(grid_));
        const bool shared = team_.size() > 1 && chunks > 1;
        if (weights_.rule.clamped) limit(count);
        // The gradients are copied first: what tiles send changes those of later ones.
        fit(grad_delta_, (count + 1) * stride);
        fit(grad_features_, (shared ? count + 1 : TILE) * features + stride);
        for (int64_t i = 0; i < count; ++i)
            copy_row(stride, grad_.data() + live_[i] * stride, grad_delta_.data() + i * stride);
        const Status status = team_.run(chunks, [&](int64_t member, int64_t chunk) {
            const int64_t end = std::min(count, (chunk + 1) * tiles / chunks * TILE);
            for (int64_t start = chunk * tiles / chunks * TILE; start < end; start += TILE) {
                const int64_t size = std::min<int64_t>(TILE, end - start);
                T *sent = grad_features_.data() + (shared ? start * features : 0);
                tiles_[member].differentiate(rows_.data(), grid_.pitch(), live_.data() + start,
                                             size, grad_delta_.data() + start * stride,
                                             sums ? sums + chunk : nullptr,
                                             further ? sent : nullptr);
                for (int64_t i = 0; i < size && further && !shared; ++i)
                    weights_.filters.send_back(sent + i * features, grid_.pitch(),
                                               grad_.data() + live_[start + i] * stride);
            }
            return DONE;
        });
        if (status != DONE || !further) return status;
        if (shared) {
            const int64_t bands = (grid_.height + 2 + BAND - 1) / BAND;
            team_.run(bands, [&](int64_t, int64_t band) {
                receive(count, band * BAND, std::min((band + 1) * BAND, grid_.height + 2) - 1);
                return DONE;
            });
        }
        fold_margins(grid_, stride, grad_.data());
        return DONE;
    }

    // E12: add to the lines `top` to `bottom`, margins included, what live cells send to them.
    void receive(int64_t count, int64_t top, int64_t bottom) {
        const auto place = [&](int64_t line) {
            const auto first = live_.begin();
            return std::lower_bound(first, first + count, grid_.cell(line, 0)) - first;
        };
        const int64_t end = place(bottom + 2);
        for (int64_t i = place(top - 1); i < end; ++i) {
            const int64_t row = live_[i], y = row / grid_.pitch();
            weights_.filters.send_back(grad_features_.data() + i * weights_.feature_stride,
                                       grid_.pitch(), grad_.data() + row * weights_.stride,
                                       static_cast<int>(std::max<int64_t>(top - y, -1)),
                                       static_cast<int>(std::min<int64_t>(bottom - y, 1)));
        }
    }

    // E8: clear the gradients of live cells where the clamp has changed their updated values.
    void limit(int64_t count) {
        const T low = static_cast<T>(weights_.rule.low), high = static_cast<T>(weights_.rule.high);
        fit(fresh_, team_.size() * TILE * weights_.stride);
        team_.run((count + TILE - 1) / TILE, [&](int64_t member, int64_t tile) {
            const int64_t start = tile * TILE, size = std::min<int64_t>(TILE, count - start);
            T *fresh = fresh_.data() + member * TILE * weights_.stride;
            tiles_[member].update(rows_.data(), grid_.pitch(), live_.data() + start, size, fresh);
            for (int64_t i = 0; i < size; ++i, fresh += weights_.stride) {
                T *grad = grad_.data() + live_[start + i] * weights_.stride;
                for (int64_t c = 0; c < weights_.own; ++c)
                    if (!(low <= fresh[c] && fresh[c] <= high)) grad[c] = 0;
            }
            return DONE;
        });
    }

    // List the cells where δ of E9 may not be zero: those that a step updated and that are alive
    // after it.
    int64_t list_live(const Record &record) {
        if (record.count == 0) return 0;
        const int32_t *cells = record.cells.in<int32_t>(pieces_);
        if (!weights_.rule.tests()) {
            std::copy_n(cells, record.count, live_.begin());
            return record.count;
        }
        const uint8_t *flags = alive(record);
        int64_t count = 0;
        for (int64_t i = 0; i < record.count; ++i) {
            live_[count] = cells[i];
            count += flags[cells[i]] != 0;
        }
        return count;
    }

    static void fit(Array<T> &memory, int64_t size) {
        if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
    }

    const Grid grid_;
    const Weights<T> &weights_;
    Team &team_;
    const uint8_t *const *pieces_ = nullptr;
    std::vector<Tile<T>> tiles_;  // one per member of the team
    // Behind their channels, rows of gradients hold numbers that nothing reads.
    Array<T> rows_, grad_, grad_delta_, grad_features_, fresh_;
    std::vector<int32_t> live_;
};

}  // namespace fastnca
