// Rollouts of a batch of grids on several threads: the functions that Python calls.
//
// Grids do not depend on each other, so each is one team's for a whole rollout: a thread, or
// several where there are more threads than grids. Gradients of the weights are added up per group
// of grids and slot of a grid, and then in the order of these, so that the number of threads does
// not change a bit of them.
#include <memory>
#include <new>
#include <numeric>
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
    fastnca::Rule rule;         // `bias2` is null if the last layer has none
    const uint8_t *masks;       // [steps, B, H, W] flags; null draws them
    int64_t random;             // 0 updates every cell, where no masks are given
    uint64_t seed, first_step;  // of the masks that are drawn
    int64_t limit;              // of a 24-bit draw, exclusive
    double largest_weight;      // of the Euclidean norm of a parameter or of the taps, exclusive
    int64_t threads;
    fastnca::Allocate allocate;  // memory for the backward pass; null keeps nothing
    int64_t piece_bytes;         // how much of it at least at once
};

namespace fastnca {

using T = FASTNCA_TYPE;

constexpr int64_t MOST_SUMS = 64;

struct KeptBatch {
    Weights<T> weights;
    std::vector<Kept> grids;
};

Grid grid_of(const fastnca_rollout &call, const Rule &rule) {
    return {call.height, call.width, rule.padding};
}

bool weights_in_range(const fastnca_rollout &call) {
    const auto fits = [&](const auto *values, int64_t count, double factor = 1) {
        const double limit = call.largest_weight / factor;
        return in_range<double>(sum_of_squares(values, count), limit);
    };
    const Rule &rule = call.rule;
    const int64_t own = call.channels - rule.inputs;
    const double step_size = std::max(1.0, rule.step_size);
    return fits(rule.taps[0], rule.filters * TAPS) &&
           fits(call.weight1, call.hidden * rule.filters * call.channels) &&
           fits(call.bias1, call.hidden) && fits(call.weight2, own * call.hidden, step_size) &&
           (!call.bias2 || fits(call.bias2, own, step_size));
}

// How many teams take the `count` grids, or groups of them, of a batch. Where the teams divide
// them evenly, none waits for another one; only large grids without a test before a step are sure
// to have enough to do for a team.
int64_t count_teams(const fastnca_rollout &call, const Rule &rule, int64_t count) {
    const bool dense = !rule.before && slots(grid_of(call, rule)) > 1;
    if (dense && count < 4 * call.threads) return std::gcd(count, call.threads);
    return std::min(count, call.threads);
}

// How many threads each of some teams has. To start them for a single step pays only if it is
// large.
int64_t count_members(const fastnca_rollout &call, int64_t teams, size_t steps) {
    constexpr int64_t LARGE = 16384;
    return steps > 1 || call.height * call.width >= LARGE ? call.threads / teams : 1;
}

// Advance grid `number`; write its last state into `result`.
Status forward_grid(const fastnca_rollout &call, const Weights<T> &weights, int64_t number,
                    Team &team, Arena *arena, Kept *kept, T *result) {
    const Grid grid = grid_of(call, call.rule);
    const int64_t cells = grid.height * grid.width, size = call.channels * cells;
    Stepper<T> stepper(grid, weights, arena, team);
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
    auto batch = std::make_unique<KeptBatch>(
        KeptBatch{Weights<T>(call.rule, call.channels, call.hidden, call.weight1, call.bias1,
                             call.weight2, call.bias2),
                  std::vector<Kept>(call.allocate ? call.batch : 0)});
    const int64_t teams = count_teams(call, call.rule, call.batch);
    const int64_t members = count_members(call, teams, call.steps);
    const Status status = share(call.batch, teams, [&] {
        return [&, team = std::make_unique<Team>(members),
                arena = Arena(call.allocate, call.piece_bytes)](int64_t number) mutable {
            return forward_grid(call, batch->weights, number, *team,
                                call.allocate ? &arena : nullptr,
                                call.allocate ? &batch->grids[number] : nullptr, result);
        };
    });
    if (call.allocate && status == DONE) *kept = batch.release();
    return status;
}

Status backward(const fastnca_rollout &call, const KeptBatch &kept, const uint8_t *const *pieces,
                const T *grad, T *grad_state, T *const *grads) {
    const Weights<T> &weights = kept.weights;
    const Grid grid = grid_of(call, weights.rule);
    const int64_t size = call.channels * call.height * call.width, count = slots(grid);
    const int64_t groups = std::min(call.batch, std::max<int64_t>(1, MOST_SUMS / count));
    const int64_t teams = count_teams(call, weights.rule, groups);
    const int64_t members = count_members(call, teams, kept.grids[0].records.size());
    std::vector<Sums<T>> sums(grads ? groups * count : 0, Sums<T>(weights));
    const Status status = share(groups, teams, [&] {
        auto team = std::make_unique<Team>(members);
        Differentiator<T> differentiator(grid, weights, *team);
        return [&, team = std::move(team),
                differentiator = std::move(differentiator)](int64_t group) mutable -> Status {
            Sums<T> *own = grads ? &sums[group * count] : nullptr;
            const int64_t end = (group + 1) * call.batch / groups;
            for (int64_t number = group * call.batch / groups; number < end; ++number) {
                const Status found =
                    differentiator.run(kept.grids[number], pieces, grad + number * size, own,
                                       grad_state ? grad_state + number * size : nullptr);
                if (found != DONE) return found;
            }
            for (int64_t slot = 0; own && slot < count; ++slot) own[slot].flush();
            return DONE;
        };
    });
    if (grads && status == DONE) {
        for (size_t i = 1; i < sums.size(); ++i) sums[0].add(sums[i]);
        sums[0].unpack(grads[0], grads[1], grads[2], weights.biased ? grads[3] : nullptr);
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

// Write the gradients of the first state, unless null, and of the parameters, unless null.
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
