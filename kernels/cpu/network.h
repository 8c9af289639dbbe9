// Perception and the MLP on a tile of cells (E1, E3, E5), and their derivatives (E9 to E11).
#pragma once

#include <cstdint>

#include "grid.h"
#include "perceive.h"
#include "vectors.h"

namespace fastnca {

constexpr int TILE = 48;  // cells, an even number

inline int64_t even(int64_t count) {
    return (count + 1) / 2 * 2;
}

// The rule and its parameters, padded with zeros, each matrix in both orientations. Factors of the
// filters and of the update are in the matrices.
template <typename T>
struct Weights {
    const Rule rule;
    const int64_t channels, own, hidden;   // own: the channels that a step writes
    const int64_t stride, columns, width;  // padded `channels`, `own` and `hidden`
    const int64_t features, feature_stride;
    const bool biased;  // whether the last layer has a bias
    const Filters<T> filters;
    Array<T> to_hidden, bias1, to_delta, bias2;  // [feature_stride, width], [width, columns]
    Array<T> from_hidden, from_delta;            // [width, feature_stride], [columns, width]

    // b2: null if the last layer has no bias.
    Weights(const Rule &rule, int64_t channels, int64_t hidden, const T *w1, const T *b1,
            const T *w2, const T *b2)
        : rule(rule),
          channels(channels),
          own(channels - rule.inputs),
          hidden(hidden),
          stride(padded<T>(channels)),
          columns(padded<T>(own)),
          width(padded<T>(hidden)),
          features(rule.filters * channels),
          feature_stride(padded<T>(features)),
          biased(b2),
          filters(rule, channels),
          to_hidden(feature_stride * width),
          bias1(width),
          to_delta(width * columns),
          bias2(columns),
          from_hidden(feature_stride * width),
          from_delta(width * columns) {
        const T step_size = static_cast<T>(rule.step_size);
        for (int64_t h = 0; h < hidden; ++h) {
            bias1[h] = b1[h];
            for (int64_t k = 0; k < rule.filters; ++k)
                for (int64_t c = 0; c < channels; ++c) {
                    const int64_t feature = k * channels + c;
                    const T weight = w1[h * features + rule.filters * c + k] * filters.scale(k);
                    to_hidden[feature * width + h] = weight;
                    from_hidden[h * feature_stride + feature] = weight;
                }
            for (int64_t c = 0; c < own; ++c)
                to_delta[h * columns + c] = from_delta[c * width + h] =
                    w2[c * hidden + h] * step_size;
        }
        for (int64_t c = 0; b2 && c < own; ++c) bias2[c] = b2[c] * step_size;
    }
};

// Gradients of the weights (E9, E10), in the orientation of `to_hidden` and `to_delta`. Sums over
// about a thousand cells are kept in T and added up in double, so that rounding does not grow with
// steps.
template <typename T>
class Sums {
  public:
    explicit Sums(const Weights<T> &weights)
        : weights_(weights), partial_(size()), total_(size()) {}

    T *to_hidden() { return partial_.data(); }
    T *bias1() { return to_hidden() + weights_.feature_stride * weights_.width; }
    T *to_delta() { return bias1() + weights_.width; }
    T *bias2() { return to_delta() + weights_.width * weights_.columns; }

    void count(int64_t cells) {
        cells_ += cells;
        if (cells_ >= MOST_CELLS) flush();
    }

    void flush() {
        if (cells_ == 0) return;
        for (size_t i = 0; i < partial_.size(); ++i) {
            total_[i] += static_cast<double>(partial_[i]);
            partial_[i] = 0;
        }
        cells_ = 0;
    }

    void add(const Sums &other) {
        for (size_t i = 0; i < total_.size(); ++i) total_[i] += other.total_[i];
    }

    // Write the flushed sums in the shapes of the module's parameters.
    //
    // b2: null if the last layer has no bias.
    void unpack(T *w1, T *b1, T *w2, T *b2) const {
        const int64_t channels = weights_.channels, own = weights_.own, hidden = weights_.hidden;
        const int64_t width = weights_.width, columns = weights_.columns;
        const int64_t filters = weights_.rule.filters;
        const T step_size = static_cast<T>(weights_.rule.step_size);
        const double *first = total_.data(), *bias = first + weights_.feature_stride * width,
                     *second = bias + width, *last = second + width * columns;
        for (int64_t h = 0; h < hidden; ++h) {
            b1[h] = static_cast<T>(bias[h]);
            for (int64_t k = 0; k < filters; ++k)
                for (int64_t c = 0; c < channels; ++c)
                    w1[h * weights_.features + filters * c + k] =
                        static_cast<T>(first[(k * channels + c) * width + h]) *
                        weights_.filters.scale(k);
            for (int64_t c = 0; c < own; ++c)
                w2[c * hidden + h] = static_cast<T>(second[h * columns + c]) * step_size;
        }
        for (int64_t c = 0; b2 && c < own; ++c) b2[c] = static_cast<T>(last[c]) * step_size;
    }

  private:
    static constexpr int64_t MOST_CELLS = 1024;

    int64_t size() const {
        return (weights_.feature_stride + 1) * weights_.width +
               (weights_.width + 1) * weights_.columns;
    }

    const Weights<T> &weights_;
    Array<T> partial_;
    Array<double> total_;
    int64_t cells_ = 0;
};

// Add the columns of `rows` [count, stride] to `sums` [columns].
template <typename T>
void add_columns(const T *rows, int64_t count, int64_t stride, int64_t columns, T *sums) {
    for (int64_t j = 0; j < columns; j += Lanes<T>::count) {
        Vector<T> sum = load(sums + j);
        for (int64_t i = 0; i < count; ++i) sum += load(rows + i * stride + j);
        store(sums + j, sum);
    }
}

// The network on one tile of cells at a time, with the memory for it.
template <typename T>
class Tile {
  public:
    explicit Tile(const Weights<T> &weights)
        : weights_(weights),
          features_(TILE * weights.feature_stride + weights.stride),
          hidden_(TILE * weights.width),
          grad_hidden_(TILE * weights.width),
          delta_(TILE * weights.stride) {}

    // E5: write the updated rows ŝ of `count` cells, before a clamp, into `fresh` [count, stride].
    void update(const T *rows, int64_t pitch, const int32_t *cells, int64_t count, T *fresh) {
        const int64_t width = weights_.width, stride = weights_.stride;
        hidden(rows, pitch, cells, count);
        // E3: Δ, times the step size
        multiply<T>({hidden_.data(), width, 1, weights_.to_delta.data(), weights_.columns,
                     delta_.data(), stride, weights_.hidden, weights_.bias2.data()},
                    even(count), weights_.columns);
        for (int64_t i = 0; i < count; ++i) {
            const T *row = rows + cells[i] * stride, *delta = delta_.data() + i * stride;
            T *to = fresh + i * stride;
            for (int64_t c = 0; c < weights_.own; ++c) to[c] = row[c] + delta[c];  // E5
            for (int64_t c = weights_.own; c < stride; ++c) to[c] = row[c];
        }
    }

    // Differentiate: add to the gradients of the weights, and compute those of the features.
    //
    // grad_delta: δ without the step size, [count, stride], rounded up to an even number of
    //     readable rows.
    // sums: where the gradients of the weights go; null if they are not wanted.
    // grad_features: [count, feature_stride], rounded up to an even number of rows; null if they
    //     are not wanted.
    void differentiate(const T *rows, int64_t pitch, const int32_t *cells, int64_t count,
                       const T *grad_delta, Sums<T> *sums, T *grad_features) {
        const int64_t width = weights_.width, stride = weights_.stride;
        const int64_t columns = weights_.columns, feature_stride = weights_.feature_stride;
        hidden(rows, pitch, cells, count);
        // E10: ∂h
        multiply<T, End::gate>(
            {grad_delta, stride, 1, weights_.from_delta.data(), width, grad_hidden_.data(), width,
             weights_.own, nullptr, false, hidden_.data()},
            even(count), width);
        if (sums) {
            // E10: ∂W₁
            multiply<T>({features_.data(), 1, feature_stride, grad_hidden_.data(), width,
                         sums->to_hidden(), width, count, nullptr, true},
                        even(weights_.features), width);
            // E9: ∂W₂
            multiply<T>({hidden_.data(), 1, width, grad_delta, stride, sums->to_delta(), columns,
                         count, nullptr, true},
                        even(weights_.hidden), columns);
            add_columns(grad_hidden_.data(), count, width, width, sums->bias1());  // E10
            add_columns(grad_delta, count, stride, columns, sums->bias2());        // E9
            sums->count(count);
        }
        if (!grad_features) return;
        // E11: ∂p
        multiply<T>({grad_hidden_.data(), width, 1, weights_.from_hidden.data(), feature_stride,
                     grad_features, feature_stride, weights_.hidden},
                    even(count), feature_stride);
    }

  private:
    // Perceive `cells` of `rows` (E1) and compute h = relu(W₁ p + b₁) (E3).
    void hidden(const T *rows, int64_t pitch, const int32_t *cells, int64_t count) {
        const int64_t width = weights_.width, feature_stride = weights_.feature_stride;
        for (int64_t i = 0; i < count; ++i)
            weights_.filters.perceive(rows + cells[i] * weights_.stride, pitch,
                                      features_.data() + i * feature_stride);
        multiply<T, End::relu>(
            {features_.data(), feature_stride, 1, weights_.to_hidden.data(), width, hidden_.data(),
             width, weights_.features, weights_.bias1.data()},
            even(count), width);
    }

    const Weights<T> &weights_;
    Array<T> features_, hidden_, grad_hidden_, delta_;
};

// Return tiles for so many threads.
template <typename T>
std::vector<Tile<T>> make_tiles(const Weights<T> &weights, int64_t count) {
    std::vector<Tile<T>> tiles;
    tiles.reserve(count);
    while (static_cast<int64_t>(tiles.size()) < count) tiles.emplace_back(weights);
    return tiles;
}

}  // namespace fastnca
