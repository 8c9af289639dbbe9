// What a rollout leaves for its backward pass: of each step, what it overwrote.
#pragma once

#include <cstdint>
#include <new>
#include <vector>

#include "grid.h"

namespace fastnca {

// Return the address of so many bytes more and the number of this piece of memory, or null. The
// caller owns it, and may have moved it by the time it is read.
typedef void *(*Allocate)(int64_t bytes, int64_t *piece);

// Where an array lies: in a piece, at a number of bytes from its start.
struct Place {
    int64_t piece = 0, offset = 0;

    template <typename T>
    const T *in(const uint8_t *const *pieces) const {
        return reinterpret_cast<const T *>(pieces[piece] + offset);
    }
};

// Memory for what is kept, one thread's. Arrays follow each other in a piece.
class Arena {
  public:
    Arena(Allocate allocate, int64_t piece_bytes)
        : allocate_(allocate), piece_bytes_(piece_bytes) {}

    template <typename T>
    T *take(int64_t count, Place &place) {
        const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
        if (bytes > size_ - used_) {
            size_ = std::max(bytes, piece_bytes_);
            used_ = 0;
            memory_ = static_cast<uint8_t *>(allocate_(size_, &piece_));
            if (!memory_) throw std::bad_alloc();
        }
        place = {piece_, used_};
        used_ += bytes;
        return reinterpret_cast<T *>(memory_ + place.offset);
    }

  private:
    Allocate allocate_;
    int64_t piece_bytes_, size_ = 0, used_ = 0, piece_ = 0;
    uint8_t *memory_ = nullptr;
};

// What one step overwrote.
struct Record {
    int64_t count = 0;  // cells whose update was computed
    Place cells;        // [count] int32 rows, ascending
    Place old;          // [count, stride], their values before the step
    int64_t gone = 0;   // other cells that the step set to zero: they are not alive
    Place gone_cells, gone_old;
    Lines lines{1, 0};  // where the step may have changed cells
    Place alive;        // one flag per row of those lines, margins included, if there is a test
};

// What the forward pass of one grid leaves.
struct Kept {
    std::vector<Record> records;  // first step first
    Lines lines{1, 0};            // those that hold something after the last step
    Place rows;                   // the rows of those lines, margins included
};

}  // namespace fastnca
