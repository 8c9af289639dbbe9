// Work shared out among threads that live as long as one call.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace fastnca {

enum Status : int { DONE, OUT_OF_RANGE, OUT_OF_MEMORY, DAMAGED };

// Call work(0) to work(count - 1) on several threads; return DONE, or a status that one returned.
//
// make_work: called once per thread, returns the callable.
template <typename MakeWork>
Status share(int64_t count, int64_t threads, const MakeWork &make_work) {
    std::atomic<int64_t> next{0};
    std::atomic<Status> status{DONE};
    const auto run = [&] {
        try {
            auto work = make_work();
            for (int64_t item = next++; item < count && status == DONE; item = next++)
                if (const Status found = work(item); found != DONE) status = found;
        } catch (const std::bad_alloc &) {
            status = OUT_OF_MEMORY;
        }
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < std::min(threads, count); ++i) {
        try {
            others.emplace_back(run);
        } catch (const std::system_error &) {
            break;  // the system gives no more threads: fewer do the work
        }
    }
    run();
    for (std::thread &other : others) other.join();
    return status;
}

}  // namespace fastnca
