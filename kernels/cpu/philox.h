// E4, the update mask m of one step: the bits of `fastnca/masks.py`.
#pragma once

#include <cstdint>

namespace fastnca {

constexpr int MASK_BITS = 24;

// Write whether cells `first` to `first + count` update in `step`: their Philox 4x32-10 word's
// upper 24 bits are below `limit`. Counters are taken sixteen at a time, which vectorises.
inline void draw_mask(uint64_t seed, uint64_t step, uint32_t limit, uint64_t first, int64_t count,
                      uint8_t *mask) {
    constexpr int TOGETHER = 16;
    const uint64_t last = first + static_cast<uint64_t>(count);
    for (uint64_t quad = first / 4; quad * 4 < last; quad += TOGETHER) {
        uint32_t c0[TOGETHER], c1[TOGETHER], c2[TOGETHER], c3[TOGETHER];
        for (int i = 0; i < TOGETHER; ++i) {
            c0[i] = static_cast<uint32_t>(quad + i);
            c1[i] = static_cast<uint32_t>((quad + i) >> 32);
            c2[i] = static_cast<uint32_t>(step);
            c3[i] = static_cast<uint32_t>(step >> 32);
        }
        uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
        for (int round = 0; round < 10; ++round) {
            for (int i = 0; i < TOGETHER; ++i) {
                const uint64_t product0 = static_cast<uint64_t>(c0[i]) * 0xD2511F53u;
                const uint64_t product1 = static_cast<uint64_t>(c2[i]) * 0xCD9E8D57u;
                c0[i] = static_cast<uint32_t>(product1 >> 32) ^ c1[i] ^ key0;
                c2[i] = static_cast<uint32_t>(product0 >> 32) ^ c3[i] ^ key1;
                c1[i] = static_cast<uint32_t>(product1);
                c3[i] = static_cast<uint32_t>(product0);
            }
            key0 += 0x9E3779B9u;
            key1 += 0xBB67AE85u;
        }
        uint8_t bits[TOGETHER][4];
        for (int i = 0; i < TOGETHER; ++i) {
            bits[i][0] = (c0[i] >> (32 - MASK_BITS)) < limit;
            bits[i][1] = (c1[i] >> (32 - MASK_BITS)) < limit;
            bits[i][2] = (c2[i] >> (32 - MASK_BITS)) < limit;
            bits[i][3] = (c3[i] >> (32 - MASK_BITS)) < limit;
        }
        const uint64_t start = quad * 4 < first ? first - quad * 4 : 0;
        const uint64_t left = last - quad * 4;
        const uint64_t stop = left < 4 * TOGETHER ? left : 4 * TOGETHER;
        for (uint64_t i = start; i < stop; ++i) mask[quad * 4 + i - first] = bits[i / 4][i % 4];
    }
}

}  // namespace fastnca
