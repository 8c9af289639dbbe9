// The 3x3 filters through which a cell sees its neighbourhood (E1), and their transposes (E12).
//
// Perceived features are k-major and compact: all channels through the first filter, then all of
// them through the second one. Whole vectors are stored in such an order that the zeros behind the
// channels of one filter are overwritten by the first channels of the next one.
#pragma once

#include <cstdint>

#include "rule.h"
#include "vectors.h"

namespace fastnca {

template <typename T>
class Filters {
  public:
    Filters(const Rule &rule, int64_t channels)
        : count_(rule.filters),
          channels_(channels),
          stride_(padded<T>(channels)),
          tutorial_(begins_as_tutorial(rule)) {
        for (int64_t k = 0; k < count_; ++k)
            for (int i = 0; i < TAPS; ++i) taps_[k][i] = static_cast<T>(rule.taps[k][i]);
    }

    // What a feature of filter k must be multiplied with: the tutorial's Sobel filters are taken
    // in eighths.
    T scale(int64_t k) const { return tutorial_ && (k == 1 || k == 2) ? T(0.125) : T(1); }

    // E1: write the features of one cell, and up to a vector of zeros behind them.
    //
    // pitch: rows of a line.
    void perceive(const T *cell, int64_t pitch, T *features) const {
        for (int64_t c = stride_ - LANES; c >= 0; c -= LANES) {
            const auto near = [&](int y, int x) {
                return load(cell + c + (y * pitch + x) * stride_);
            };
            T *to = features + c;
            int64_t k = 0;
            if (tutorial_) {
                const auto falling = near(1, 1) - near(-1, -1);
                const auto rising = near(-1, 1) - near(1, -1);
                const auto across = near(0, 1) - near(0, -1);
                const auto along = near(1, 0) - near(-1, 0);
                store(to, near(0, 0));
                store(to + channels_, falling + rising + (across + across));
                store(to + 2 * channels_, falling - rising + (along + along));
                k = TUTORIAL;
            }
            for (; k < count_; ++k) {
                Vector<T> sum{};
#pragma GCC unroll 9
                for (int i = 0; i < TAPS; ++i) sum += taps_[k][i] * near(i / 3 - 1, i % 3 - 1);
                store(to + k * channels_, sum);
            }
        }
    }

    // E12: add what one cell sent to its features, `grad_features`, to the rows of `grad` that it
    // saw in the lines `first` to `last` of the three around it, -1 to 1. Rows of `grad` receive
    // numbers without a meaning behind their channels.
    void send_back(const T *grad_features, int64_t pitch, T *grad, int first = -1,
                   int last = 1) const {
        for (int64_t c = 0; c < stride_; c += LANES) {
            const auto part = [&](int64_t k) { return load(grad_features + k * channels_ + c); };
            Vector<T> sent[TAPS] = {};
            int64_t k = 0;
            if (tutorial_) {
                const auto x = part(1), y = part(2), both = x + y, difference = x - y;
                sent[0] = -both, sent[1] = -(y + y), sent[2] = difference;
                sent[3] = -(x + x), sent[4] = part(0), sent[5] = x + x;
                sent[6] = -difference, sent[7] = y + y, sent[8] = both;
                k = TUTORIAL;
            }
            for (; k < count_; ++k) {
                const auto value = part(k);
#pragma GCC unroll 9
                for (int i = 0; i < TAPS; ++i) sent[i] += taps_[k][i] * value;
            }
#pragma GCC unroll 3
            for (int y = -1; y <= 1; ++y) {
                if (y < first || y > last) continue;
#pragma GCC unroll 3
                for (int x = -1; x <= 1; ++x) {
                    T *to = grad + c + (y * pitch + x) * stride_;
                    store(to, load(to) + sent[3 * y + x + 4]);
                }
            }
        }
    }

  private:
    static constexpr int LANES = Lanes<T>::count;
    static constexpr int64_t TUTORIAL = 3;  // identity, Sobel-x, Sobel-y

    static bool begins_as_tutorial(const Rule &rule) {
        constexpr double EIGHTHS[TUTORIAL][TAPS] = {{0, 0, 0, 0, 8, 0, 0, 0, 0},
                                                    {-1, 0, 1, -2, 0, 2, -1, 0, 1},
                                                    {-1, -2, -1, 0, 0, 0, 1, 2, 1}};
        for (int64_t k = 0; k < TUTORIAL; ++k)
            for (int i = 0; i < TAPS; ++i)
                if (k >= rule.filters || rule.taps[k][i] * 8 != EIGHTHS[k][i]) return false;
        return true;
    }

    const int64_t count_, channels_, stride_;
    const bool tutorial_;
    T taps_[MOST_FILTERS][TAPS];
};

}  // namespace fastnca
