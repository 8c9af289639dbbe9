// Rollouts of a batch of grids on several threads: the functions that Python calls.
//
// Grids do not depend on each other, so each is one thread's for a whole rollout; threads that are
// left over help where a step of a grid has much to do. Gradients of the weights are added up per
// group of grids, and then in the order of the groups, so that the number of threads does not
// change a bit of them.
#include <memory>
#include <new>
#include <vector>

#include "backward.h"
#include "forward.h"
#include "philox.h"
#include "threads.h"

#ifndef FASTNCA_TYPE
#define FASTNCA_TYPE float
#endif

// What a rollout is given; `fastnca/backends/cpp/library.py` mirrors it. All arrays are contiguous.
struct fastnca_rollout {
    int64_t batch, channels, hidden, height, width, steps;
    const FASTNCA_TYPE *state;                              // [B, C, H, W]
    const FASTNCA_TYPE *weight1, *bias1, *weight2, *bias2;  // as the module has them
    const uint8_t *masks;       // [steps, B, H, W] flags; null draws them
    int64_t random;             // 0 updates every cell, where no masks are given
    uint64_t seed, first_step;  // of the masks that are drawn
    int64_t limit;              // of a 24-bit draw, exclusive
    double threshold;           // of a living alpha, exclusive
    double largest_weight;      // of a parameter's Euclidean norm, exclusive
    int64_t threads;
    fastnca::Allocate allocate;  // memory for the backward pass; null keeps nothing
    int64_t piece_bytes;         // how much of it at least at once
};

namespace fastnca {

using T = FASTNCA_TYPE;

constexpr int64_t MOST_GROUPS = 64;

struct KeptBatch {
    Weights<T> weights;
    std::vector<Kept> grids;
};

bool weights_in_range(const fastnca_rollout &call) {
    const auto fits = [&](const T *values, int64_t count) {
        return in_range(sum_of_squares(values, count), static_cast<T>(call.largest_weight));
    };
    return fits(call.weight1, call.hidden * 3 * call.channels) && fits(call.bias1, call.hidden) &&
           fits(call.weight2, call.channels * call.hidden) && fits(call.bias2, call.channels);
}

// Advance grid `number`; write its last state into `result`.
Status forward_grid(const fastnca_rollout &call, const Weights<T> &weights, int64_t number,
                    Arena *arena, Kept *kept, T *result) {
    const Grid grid{call.height, call.width};
    const int64_t cells = grid.height * grid.width, size = call.channels * cells;
    const int64_t threads = call.threads / call.batch;  // for this grid alone
    Stepper<T> stepper(grid, weights, static_cast<T>(call.threshold), arena, threads);
    stepper.enter(call.state + number * size);
    std::vector<uint8_t> drawn(call.random && !call.masks ? cells : 0);
    for (int64_t step = 0; step < call.steps && stepper.status() == DONE; ++step) {
        const Lines lines = stepper.lines();
        const int64_t skipped = (lines.top - 1) * grid.width;
        const uint8_t *mask = nullptr;
        if (call.masks) {
            mask = call.masks + (step * call.batch + number) * cells + skipped;
        } else if (call.random && !lines.empty()) {
            draw_mask(call.seed, call.first_step + step, static_cast<uint32_t>(call.limit),
                      number * cells + skipped, (lines.bottom - lines.top + 1) * grid.width,
                      drawn.data());
            mask = drawn.data();
        }
        const Record record = stepper.step(mask);
        if (kept) kept->records.push_back(record);
    }
    if (stepper.status() == DONE) stepper.leave(result + number * size, kept);
    return stepper.status();
}

Status forward(const fastnca_rollout &call, T *result, KeptBatch **kept) {
    if (!weights_in_range(call)) return OUT_OF_RANGE;
    auto batch = std::make_unique<KeptBatch>(KeptBatch{
        Weights<T>(call.channels, call.hidden, call.weight1, call.bias1, call.weight2, call.bias2),
        std::vector<Kept>(call.allocate ? call.batch : 0)});
    const Status status = share(call.batch, call.threads, [&] {
        return [&, arena = Arena(call.allocate, call.piece_bytes)](int64_t number) mutable {
            return forward_grid(call, batch->weights, number, call.allocate ? &arena : nullptr,
                                call.allocate ? &batch->grids[number] : nullptr, result);
        };
    });
    if (call.allocate && status == DONE) *kept = batch.release();
    return status;
}

Status backward(const fastnca_rollout &call, const KeptBatch &kept, const uint8_t *const *pieces,
                const T *grad, T *grad_state, T *const *grads) {
    const Grid grid{call.height, call.width};
    const int64_t size = call.channels * call.height * call.width;
    const int64_t groups = std::min(call.batch, MOST_GROUPS);
    std::vector<Sums<T>> sums(grads ? groups : 0, Sums<T>(kept.weights));
    const Status status = share(groups, call.threads, [&] {
        return [&, differentiator =
                       Differentiator<T>(grid, kept.weights)](int64_t group) mutable -> Status {
            const int64_t end = (group + 1) * call.batch / groups;
            for (int64_t number = group * call.batch / groups; number < end; ++number) {
                const Status found =
                    differentiator.run(kept.grids[number], pieces, grad + number * size,
                                       grads ? &sums[group] : nullptr,
                                       grad_state ? grad_state + number * size : nullptr);
                if (found != DONE) return found;
            }
            if (grads) sums[group].flush();
            return DONE;
        };
    });
    if (grads && status == DONE) {
        for (int64_t group = 1; group < groups; ++group) sums[0].add(sums[group]);
        sums[0].unpack(grads[0], grads[1], grads[2], grads[3]);
    }
    return status;
}

}  // namespace fastnca

extern "C" {

// Write the last state into `result` [B, C, H, W]; if memory is allocated for it, leave in `kept`
// what `fastnca_backward` needs, for `fastnca_release` to free.
int fastnca_forward(const fastnca_rollout *call, FASTNCA_TYPE *result, fastnca::KeptBatch **kept) {
    try {
        return fastnca::forward(*call, result, kept);
    } catch (const std::bad_alloc &) {
        return fastnca::OUT_OF_MEMORY;
    }
}

// Write the gradients of the first state, unless null, and of the four parameters, unless null.
// OUT_OF_RANGE if `grad` is not finite, DAMAGED if `pieces` do not hold what was left in them. Of
// `call`, sizes and threads are read; `pieces` are the addresses of what was allocated.
int fastnca_backward(const fastnca_rollout *call, const fastnca::KeptBatch *kept,
                     const uint8_t *const *pieces, const FASTNCA_TYPE *grad,
                     FASTNCA_TYPE *grad_state, FASTNCA_TYPE *const *grads) {
    try {
        return fastnca::backward(*call, *kept, pieces, grad, grad_state, grads);
    } catch (const std::bad_alloc &) {
        return fastnca::OUT_OF_MEMORY;
    }
}

void fastnca_release(fastnca::KeptBatch *kept) {
    delete kept;
}
}
