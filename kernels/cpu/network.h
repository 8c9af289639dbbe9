// Perception and the MLP on a tile of cells, and their transposes.
//
// Perceived features are k-major: all channels through the identity, then through Sobel-x, then
// through Sobel-y. The Sobel filters are taken in eighths; the 1/8 is in the packed weights.
#pragma once

#include <cstdint>

#include "grid.h"
#include "vectors.h"

namespace fastnca {

constexpr int TILE = 48;  // cells, an even number

// The four parameters, padded with zeros, each matrix in both orientations.
template <typename T>
struct Weights {
    int64_t channels, hidden;                    // as the module has them
    int64_t stride, width;                       // padded
    Array<T> to_hidden, bias1, to_delta, bias2;  // [3*stride, width], [width, stride]
    Array<T> from_hidden, from_delta;            // [width, 3*stride], [stride, width]

    Weights(int64_t channels, int64_t hidden, const T *w1, const T *b1, const T *w2, const T *b2)
        : channels(channels),
          hidden(hidden),
          stride(padded<T>(channels)),
          width(padded<T>(hidden)),
          to_hidden(3 * stride * width),
          bias1(width),
          to_delta(width * stride),
          bias2(stride),
          from_hidden(3 * stride * width),
          from_delta(width * stride) {
        for (int64_t h = 0; h < hidden; ++h) {
            bias1[h] = b1[h];
            for (int64_t c = 0; c < channels; ++c) {
                for (int64_t k = 0; k < 3; ++k) {
                    const T weight = w1[h * 3 * channels + 3 * c + k] * scale(k);
                    to_hidden[(k * stride + c) * width + h] = weight;
                    from_hidden[h * 3 * stride + k * stride + c] = weight;
                }
                to_delta[h * stride + c] = from_delta[c * width + h] = w2[c * hidden + h];
            }
        }
        for (int64_t c = 0; c < channels; ++c) bias2[c] = b2[c];
    }

    static T scale(int64_t filter) { return filter == 0 ? T(1) : T(0.125); }

    int64_t features() const { return 3 * stride; }
};

// Gradients of the weights, in the orientation of `to_hidden` and `to_delta`. Sums over about
// a thousand cells are kept in T and added up in double, so that rounding does not grow with steps.
template <typename T>
class Sums {
  public:
    explicit Sums(const Weights<T> &weights)
        : weights_(weights), partial_(size()), total_(size()) {}

    T *to_hidden() { return partial_.data(); }
    T *bias1() { return to_hidden() + weights_.features() * weights_.width; }
    T *to_delta() { return bias1() + weights_.width; }
    T *bias2() { return to_delta() + weights_.width * weights_.stride; }

    void count(int64_t cells) {
        cells_ += cells;
        if (cells_ >= MOST_CELLS) flush();
    }

    void flush() {
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
    void unpack(T *w1, T *b1, T *w2, T *b2) const {
        const int64_t channels = weights_.channels, hidden = weights_.hidden;
        const int64_t stride = weights_.stride, width = weights_.width;
        const double *first = total_.data(), *bias = first + weights_.features() * width,
                     *second = bias + width, *last = second + width * stride;
        for (int64_t h = 0; h < hidden; ++h) {
            b1[h] = static_cast<T>(bias[h]);
            for (int64_t c = 0; c < channels; ++c) {
                for (int64_t k = 0; k < 3; ++k)
                    w1[h * 3 * channels + 3 * c + k] =
                        static_cast<T>(first[(k * stride + c) * width + h]) * Weights<T>::scale(k);
                w2[c * hidden + h] = static_cast<T>(second[h * stride + c]);
            }
        }
        for (int64_t c = 0; c < channels; ++c) b2[c] = static_cast<T>(last[c]);
    }

  private:
    static constexpr int64_t MOST_CELLS = 1024;

    int64_t size() const {
        return (weights_.features() + 1) * weights_.width + (weights_.width + 1) * weights_.stride;
    }

    const Weights<T> &weights_;
    Array<T> partial_;
    Array<double> total_;
    int64_t cells_ = 0;
};

// Add the columns of `rows` [count, columns] to `sums` [columns].
template <typename T>
void add_columns(const T *rows, int64_t count, int64_t columns, T *sums) {
    for (int64_t j = 0; j < columns; j += Lanes<T>::count) {
        Vector<T> sum = load(sums + j);
        for (int64_t i = 0; i < count; ++i) sum += load(rows + i * columns + j);
        store(sums + j, sum);
    }
}

// The network on one tile of cells at a time, with the memory for it.
template <typename T>
class Tile {
  public:
    explicit Tile(const Weights<T> &weights)
        : weights_(weights),
          features_(TILE * weights.features()),
          hidden_(TILE * weights.width),
          grad_hidden_(TILE * weights.width),
          grad_features_(TILE * weights.features()) {}

    // Compute W₂ relu(W₁ p + b₁) + b₂ of `count` cells into `delta` [TILE, stride].
    void delta(const T *rows, int64_t pitch, const int32_t *cells, int64_t count, T *delta) {
        const int64_t width = weights_.width, stride = weights_.stride;
        hidden(rows, pitch, cells, count);
        multiply<T>({hidden_.data(), width, 1, weights_.to_delta.data(), stride, delta, stride,
                     width, weights_.bias2.data()},
                    even(count), stride);
    }

    // Differentiate: add to the gradients of the weights, and compute those of the features.
    //
    // grad_delta: [count, stride], rounded up to an even number of readable rows.
    // sums: where the gradients of the weights go; null if they are not wanted.
    // Returns [count, 3*stride] if `features_too`, else null.
    const T *differentiate(const T *rows, int64_t pitch, const int32_t *cells, int64_t count,
                           const T *grad_delta, Sums<T> *sums, bool features_too) {
        const int64_t width = weights_.width, stride = weights_.stride;
        const int64_t features = weights_.features();
        hidden(rows, pitch, cells, count);
        multiply<T, End::gate>({grad_delta, stride, 1, weights_.from_delta.data(), width,
                                grad_hidden_.data(), width, stride, nullptr, false, hidden_.data()},
                               even(count), width);
        if (sums) {
            multiply<T>({features_.data(), 1, features, grad_hidden_.data(), width,
                         sums->to_hidden(), width, count, nullptr, true},
                        features, width);
            multiply<T>({hidden_.data(), 1, width, grad_delta, stride, sums->to_delta(), stride,
                         count, nullptr, true},
                        width, stride);
            add_columns(grad_hidden_.data(), count, width, sums->bias1());
            add_columns(grad_delta, count, stride, sums->bias2());
            sums->count(count);
        }
        if (!features_too) return nullptr;
        multiply<T>({grad_hidden_.data(), width, 1, weights_.from_hidden.data(), features,
                     grad_features_.data(), features, width},
                    even(count), features);
        return grad_features_.data();
    }

  private:
    static int64_t even(int64_t count) { return (count + 1) / 2 * 2; }

    // Perceive `cells` of `rows` and compute relu(W₁ p + b₁).
    void hidden(const T *rows, int64_t pitch, const int32_t *cells, int64_t count) {
        const int64_t stride = weights_.stride, features = weights_.features();
        const int64_t right = stride, down = pitch * stride;
        for (int64_t i = 0; i < count; ++i) {
            const T *cell = rows + cells[i] * stride;
            T *to = features_.data() + i * features;
            for (int64_t c = 0; c < stride; c += Lanes<T>::count, cell += Lanes<T>::count) {
                const auto falling = load(cell + down + right) - load(cell - down - right);
                const auto rising = load(cell - down + right) - load(cell + down - right);
                const auto across = load(cell + right) - load(cell - right);
                const auto along = load(cell + down) - load(cell - down);
                store(to + c, load(cell));
                store(to + stride + c, falling + rising + (across + across));
                store(to + 2 * stride + c, falling - rising + (along + along));
            }
        }
        multiply<T, End::relu>(
            {features_.data(), features, 1, weights_.to_hidden.data(), weights_.width,
             hidden_.data(), weights_.width, features, weights_.bias1.data()},
            even(count), weights_.width);
    }

    const Weights<T> &weights_;
    Array<T> features_, hidden_, grad_hidden_, grad_features_;
};

// Add the transposed perception of one cell: what it sent to the features, `grad_features`
// [3*stride], goes to the nine rows of `grad` that it perceived.
template <typename T>
void send_back(const T *grad_features, int64_t stride, int64_t pitch, T *grad) {
    const int64_t right = stride, down = pitch * stride;
    for (int64_t c = 0; c < stride; c += Lanes<T>::count, grad += Lanes<T>::count) {
        const auto add = [&](int64_t distance, Vector<T> value) {
            store(grad + distance, load(grad + distance) + value);
        };
        const auto itself = load(grad_features + c), x = load(grad_features + stride + c),
                   y = load(grad_features + 2 * stride + c);
        const auto both = x + y, difference = x - y;
        add(-down - right, -both);
        add(-down, -(y + y));
        add(-down + right, difference);
        add(-right, -(x + x));
        add(0, itself);
        add(right, x + x);
        add(down - right, -difference);
        add(down, y + y);
        add(down + right, both);
    }
}

}  // namespace fastnca
