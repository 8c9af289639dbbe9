// Work shared out among threads that live as long as one call.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
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

// Threads that share one piece of work after the other. They are started when there is first
// something to share, and live as long as the team.
class Team {
  public:
    explicit Team(int64_t threads) : size_(std::max<int64_t>(1, threads)) {}
    Team(const Team &) = delete;
    Team &operator=(const Team &) = delete;
    ~Team() {
        change([&] { ending_ = true, ++round_; });
        for (std::thread &other : others_) other.join();
    }

    int64_t size() const { return size_; }

    // Call work(member, item) for the items 0 to count - 1; return DONE, or a status that one
    // returned.
    //
    // member: below `size()`, no two threads have the same.
    template <typename Work>
    Status run(int64_t count, const Work &work) {
        next_ = 0, status_ = DONE;
        work_ = [&](int64_t member) {
            try {
                for (int64_t item = next_++; item < count && status_ == DONE; item = next_++)
                    if (const Status found = work(member, item); found != DONE) status_ = found;
            } catch (const std::bad_alloc &) {
                status_ = OUT_OF_MEMORY;
            }
        };
        if (size_ == 1 || count < 2) {
            work_(0);
            return status_;
        }
        if (others_.empty()) start();
        change([&] { working_ = static_cast<int64_t>(others_.size()), ++round_; });
        work_(0);
        await([&] { return working_ == 0; });
        return status_;
    }

  private:
    static constexpr int SPINS = 200;  // looks at a condition before a thread sleeps

    void start() {
        others_.reserve(size_ - 1);
        while (static_cast<int64_t>(others_.size()) < size_ - 1) {
            try {
                others_.emplace_back([this, member = others_.size() + 1, round = round_.load()] {
                    serve(static_cast<int64_t>(member), round);
                });
            } catch (const std::system_error &) {
                size_ = static_cast<int64_t>(others_.size()) + 1;  // the system gives no more
            }
        }
    }

    void serve(int64_t member, int64_t round) {
        for (;; ++round) {
            await([&] { return round_ != round; });
            if (ending_) return;
            work_(member);
            change([&] { --working_; });
        }
    }

    template <typename Change>
    void change(const Change &make) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            make();
        }
        changed_.notify_all();
    }

    // Return when `ready`, which some `change` makes true.
    template <typename Ready>
    void await(const Ready &ready) {
        for (int i = 0; i < SPINS; ++i) {
            if (ready()) return;
            std::this_thread::yield();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, ready);
    }

    int64_t size_;
    std::vector<std::thread> others_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::function<void(int64_t)> work_;
    std::atomic<int64_t> next_{0}, working_{0}, round_{0};
    std::atomic<Status> status_{DONE};
    std::atomic<bool> ending_{false};
};

}  // namespace fastnca
