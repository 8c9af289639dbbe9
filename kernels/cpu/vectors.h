// Vectors of the widest registers that the compiler may use, and the one matrix product that
// everything else is made of.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace fastnca {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, BLOCK_VECTORS = 4;  // 32 registers
#elif defined(__AVX__)
constexpr int VECTOR_BYTES = 32, BLOCK_VECTORS = 2;  // 16 registers
#elif defined(__aarch64__)
constexpr int VECTOR_BYTES = 16, BLOCK_VECTORS = 4;
#else
constexpr int VECTOR_BYTES = 16, BLOCK_VECTORS = 2;
#endif

template <typename T>
struct Lanes {
    typedef T type __attribute__((vector_size(VECTOR_BYTES)));
    typedef T loose __attribute__((vector_size(VECTOR_BYTES), aligned(alignof(T)), may_alias));
    static constexpr int count = VECTOR_BYTES / sizeof(T);
};

template <typename T>
using Vector = typename Lanes<T>::type;

template <typename T>
inline Vector<T> load(const T *from) {
    return *reinterpret_cast<const typename Lanes<T>::loose *>(from);
}

template <typename T>
inline void store(T *to, Vector<T> value) {
    *reinterpret_cast<typename Lanes<T>::loose *>(to) = value;
}

// Memory that starts where a vector may: one that lies in two cache lines costs twice the time.
template <typename T>
struct Aligned {
    using value_type = T;

    Aligned() = default;
    template <typename U>
    Aligned(const Aligned<U> &) {}
    T *allocate(size_t count) {
        return static_cast<T *>(::operator new(count * sizeof(T), std::align_val_t(VECTOR_BYTES)));
    }
    void deallocate(T *memory, size_t) {
        ::operator delete(memory, std::align_val_t(VECTOR_BYTES));
    }
    template <typename U>
    bool operator==(const Aligned<U> &) const {
        return true;
    }
    template <typename U>
    bool operator!=(const Aligned<U> &) const {
        return false;
    }
};

template <typename T>
using Array = std::vector<T, Aligned<T>>;

// Round up to whole vectors, and to a multiple of 4: the row counts of products are even.
template <typename T>
inline int64_t padded(int64_t count) {
    constexpr int64_t multiple = std::max(Lanes<T>::count, 4);
    return (count + multiple - 1) / multiple * multiple;
}

enum class End { plain, relu, gate };

// out[r][j] = Σₖ a[r*a_row + k*a_k] * b[k*b_row + j], and then `End`:
// relu keeps what is positive, gate what stands where `gate`, shaped like `out`, is positive.
// A sum starts at `out` itself if `accumulate`, else at `bias[j]`, else at zero.
template <typename T>
struct Product {
    const T *a;
    int64_t a_row, a_k;
    const T *b;
    int64_t b_row;
    T *out;
    int64_t out_row;
    int64_t count;  // of k
    const T *bias = nullptr;
    bool accumulate = false;
    const T *gate = nullptr;
};

// Compute ROWS rows by VECTORS vectors of a product, the sums held in registers.
template <typename T, End END, int ROWS, int VECTORS>
inline void multiply_block(const Product<T> &product, int64_t row, int64_t column) {
    constexpr int LANES = Lanes<T>::count;
    Vector<T> sums[ROWS][VECTORS];
    T *const out = product.out + row * product.out_row + column;
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v)
            sums[r][v] = product.accumulate ? load(out + r * product.out_row + v * LANES)
                         : product.bias     ? load(product.bias + column + v * LANES)
                                            : Vector<T>{};
    const T *a = product.a + row * product.a_row;
    const T *b = product.b + column;
    for (int64_t k = 0; k < product.count; ++k, a += product.a_k, b += product.b_row) {
        Vector<T> line[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) line[v] = load(b + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const T factor = a[r * product.a_row];
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) sums[r][v] += factor * line[v];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
            const int64_t place = r * product.out_row + v * LANES;
            Vector<T> value = sums[r][v];
            if (END == End::relu) value = value > Vector<T>{} ? value : Vector<T>{};
            if (END == End::gate) {
                const T *gate = product.gate + row * product.out_row + column;
                value = load(gate + place) > Vector<T>{} ? value : Vector<T>{};
            }
            store(out + place, value);
        }
}

template <typename T, End END, int ROWS, int VECTORS>
inline void multiply_columns(const Product<T> &product, int64_t rows, int64_t column) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS)
        multiply_block<T, END, ROWS, VECTORS>(product, row, column);
    for (; row + 4 <= rows; row += 4) multiply_block<T, END, 4, VECTORS>(product, row, column);
    for (; row + 2 <= rows; row += 2) multiply_block<T, END, 2, VECTORS>(product, row, column);
}

// Compute `rows` rows, an even number, by `columns` columns, whole vectors, of a product.
template <typename T, End END = End::plain>
void multiply(const Product<T> &product, int64_t rows, int64_t columns) {
    constexpr int LANES = Lanes<T>::count;
    for (int64_t column = 0; column < columns;) {
        const int64_t left = std::min<int64_t>((columns - column) / LANES, BLOCK_VECTORS);
        if (left == 4 && BLOCK_VECTORS == 4)
            multiply_columns<T, END, 6, 4>(product, rows, column);
        else if (left == 3 && BLOCK_VECTORS == 4)
            multiply_columns<T, END, 8, 3>(product, rows, column);
        else if (left == 2)
            multiply_columns<T, END, 6, 2>(product, rows, column);
        else
            multiply_columns<T, END, 12, 1>(product, rows, column);
        column += left * LANES;
    }
}

}  // namespace fastnca
