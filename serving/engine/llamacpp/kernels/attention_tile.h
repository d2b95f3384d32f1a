// The arithmetic of fused attention on a tile of queries and keys. A query's numbers depend on nothing but itself and the
// keys, whatever else is in its tile.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels.h"

namespace kernels {

constexpr int KEYS = 64;         // of a tile
constexpr int ROWS_AT_ONCE = 6;  // whose sums are in registers
constexpr int LONGEST_HEAD = 256;

// Asks for a head of a key or value of the next tile: for a few queries, memory is slower to bring it than the processor to
// compute.
[[gnu::always_inline]] inline void fetch_next(const char * key_or_value, size_t stride, int bytes) {
    fetch(key_or_value + KEYS * stride, bytes);
}

// Keys of a tile as they are in the cache, but [head][KEYS]; those beyond `count` are 0.
inline void turn_keys(uint16_t * out, const char * keys, size_t stride, int head, int count, bool few_queries) {
    static constexpr uint16_t NO_KEY[LONGEST_HEAD] = {};
    for (int k = 0; k < KEYS; k += LANES) {
        const char * rows[LANES];
        for (int i = 0; i < LANES; i++) {
            rows[i] = k + i < count ? keys + (k + i) * stride : reinterpret_cast<const char *>(NO_KEY);
            if (few_queries && k + i < count) {
                fetch_next(rows[i], stride, head * 2);
            }
        }
        for (int d = 0; d < head; d += 8) {
            transpose_halves(out + d * KEYS + k, KEYS, rows, d * 2);
        }
    }
}

// Turned keys as floats, [head][KEYS].
inline void widen_keys(float * out, const uint16_t * turned, int head) {
    for (int i = 0; i < head * KEYS; i += LANES) {
        store(out + i, halves_to_floats(turned + i));
    }
}

// Values of a tile as floats, [KEYS][head]; those beyond `count` are 0.
inline void take_values(float * out, const char * values, size_t stride, int head, int count) {
    for (int k = 0; k < KEYS; k++) {
        for (int d = 0; d < head; d += LANES) {
            store(out + k * head + d, k < count ? halves_to_floats(values + k * stride + d * 2) : zeros());
        }
    }
}

// Where a tile's keys are, [head][KEYS]: as floats, or as they are in the cache.
struct WideKeys {
    const float * first;
    Floats operator()(int d, int key) const { return load(first + d * KEYS + key); }
};

struct TurnedKeys {
    const uint16_t * first;
    Floats operator()(int d, int key) const { return halves_to_floats(first + d * KEYS + key); }
};

// scores[R][KEYS] = queries[R][head] times keys[head][KEYS].
template <int R, typename Keys> void score(float * scores, const float * queries, const Keys & keys, int head) {
    for (int k = 0; k < KEYS; k += VECTORS_AT_ONCE * LANES) {
        Floats sums[R][VECTORS_AT_ONCE];
        for (auto & row : sums) {
            for (auto & sum : row) {
                sum = zeros();
            }
        }
        for (int d = 0; d < head; d++) {
            Floats column[VECTORS_AT_ONCE];
            for (int i = 0; i < VECTORS_AT_ONCE; i++) {
                column[i] = keys(d, k + i * LANES);
            }
#pragma GCC unroll 6
            for (int r = 0; r < R; r++) {
                const Floats query = all(queries[r * head + d]);
                for (int i = 0; i < VECTORS_AT_ONCE; i++) {
                    sums[r][i] = plus_product(sums[r][i], query, column[i]);
                }
            }
        }
        for (int r = 0; r < R; r++) {
            for (int i = 0; i < VECTORS_AT_ONCE; i++) {
                store(scores + r * KEYS + k + i * LANES, sums[r][i]);
            }
        }
    }
}

// Where a tile's values are: in the cache, or as floats, [KEYS][head].
struct InCache {
    const char * first;
    size_t stride;
    Floats operator()(int key, int d) const {
        const char * halves = first + key * stride + d * 2;
        if (d % (2 * LANES) == 0) {
            fetch_next(halves, stride, 64);
        }
        return halves_to_floats(halves);
    }
};

struct AsFloats {
    const float * first;
    int head;
    Floats operator()(int key, int d) const { return load(first + key * head + d); }
};

// sums[R][head] += weights[R][KEYS] times values[KEYS][head], for VECTORS * LANES numbers of a head from d on.
template <int R, int VECTORS, typename Values>
void add_values(float * sums, const float * weights, const Values & values, int head, int d, int count) {
    Floats parts[R][VECTORS];
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < VECTORS; i++) {
            parts[r][i] = load(sums + r * head + d + i * LANES);
        }
    }
    for (int k = 0; k < count; k++) {
        Floats value[VECTORS];
        for (int i = 0; i < VECTORS; i++) {
            value[i] = values(k, d + i * LANES);
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const Floats weight = all(weights[r * KEYS + k]);
            for (int i = 0; i < VECTORS; i++) {
                parts[r][i] = plus_product(parts[r][i], weight, value[i]);
            }
        }
    }
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < VECTORS; i++) {
            store(sums + r * head + d + i * LANES, parts[r][i]);
        }
    }
}

template <int R, typename Values> void add_all_values(float * sums, const float * weights, const Values & values, int head, int count) {
    int d = 0;
    for (; d + VECTORS_AT_ONCE * LANES <= head; d += VECTORS_AT_ONCE * LANES) {
        add_values<R, VECTORS_AT_ONCE>(sums, weights, values, head, d, count);
    }
    for (; d < head; d += LANES) {
        add_values<R, 1>(sums, weights, values, head, d, count);
    }
}

}  // namespace kernels
