// The arithmetic of fused attention on a tile of queries and keys. A query's numbers depend on nothing but itself and the
// keys, whatever else is in its tile.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>

#include "kernels.h"

namespace kernels {

constexpr int KEYS = 64;         // of a tile
constexpr int ROWS_AT_ONCE = 6;  // whose sums are in registers

inline __m512 halves_to_floats(const void * halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i *>(halves)));
}

// exp(x) for x <= 0 to about one unit in the last place; exactly 0 where that is less than the least float, and no number
// where x is none. Reduction and polynomial after Cephes' expf.
inline __m512 exp_of(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

// Asks for a head of a key or value of the next tile: for a few queries, memory is slower to bring it than the processor to
// compute.
[[gnu::always_inline]] inline void fetch_next(const char * key_or_value, size_t stride, int bytes) {
    fetch(key_or_value + KEYS * stride, bytes);
}

// Keys of a tile as floats, [head][KEYS]; those beyond `count` are 0.
inline void take_keys(float * out, const char * keys, size_t stride, int head, int count, bool few_queries) {
    for (int k = 0; k < KEYS; k += LANES) {
        for (int i = k; few_queries && i < std::min(k + LANES, count); i++) {
            fetch_next(keys + i * stride, stride, head * 2);
        }
        for (int d = 0; d < head; d += LANES) {
            __m512 rows[LANES];
            for (int i = 0; i < LANES; i++) {
                rows[i] = k + i < count ? halves_to_floats(keys + (k + i) * stride + d * 2) : _mm512_setzero_ps();
            }
            transpose(rows);
            for (int i = 0; i < LANES; i++) {
                _mm512_store_ps(out + (d + i) * KEYS + k, rows[i]);
            }
        }
    }
}

// Values of a tile as floats, [KEYS][head]; those beyond `count` are 0.
inline void take_values(float * out, const char * values, size_t stride, int head, int count) {
    for (int k = 0; k < KEYS; k++) {
        for (int d = 0; d < head; d += LANES) {
            _mm512_store_ps(out + k * head + d, k < count ? halves_to_floats(values + k * stride + d * 2) : _mm512_setzero_ps());
        }
    }
}

// scores[R][KEYS] = queries[R][head] times keys[head][KEYS].
template <int R> void score(float * scores, const float * queries, const float * keys, int head) {
    __m512 sums[R][KEYS / LANES];
    for (auto & row : sums) {
        for (auto & sum : row) {
            sum = _mm512_setzero_ps();
        }
    }
    for (int d = 0; d < head; d++) {
        __m512 column[KEYS / LANES];
        for (int i = 0; i < KEYS / LANES; i++) {
            column[i] = _mm512_load_ps(keys + d * KEYS + i * LANES);
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const __m512 query = _mm512_set1_ps(queries[r * head + d]);
            for (int i = 0; i < KEYS / LANES; i++) {
                sums[r][i] = _mm512_fmadd_ps(query, column[i], sums[r][i]);
            }
        }
    }
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < KEYS / LANES; i++) {
            _mm512_store_ps(scores + r * KEYS + i * LANES, sums[r][i]);
        }
    }
}

// Where a tile's values are: in the cache, or as floats, [KEYS][head].
struct InCache {
    const char * first;
    size_t stride;
    __m512 operator()(int key, int d) const {
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
    __m512 operator()(int key, int d) const { return _mm512_load_ps(first + key * head + d); }
};

// sums[R][head] += weights[R][KEYS] times values[KEYS][head], for VECTORS * LANES numbers of a head from d on.
template <int R, int VECTORS, typename Values>
void add_values(float * sums, const float * weights, const Values & values, int head, int d, int count) {
    __m512 parts[R][VECTORS];
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < VECTORS; i++) {
            parts[r][i] = _mm512_load_ps(sums + r * head + d + i * LANES);
        }
    }
    for (int k = 0; k < count; k++) {
        __m512 value[VECTORS];
        for (int i = 0; i < VECTORS; i++) {
            value[i] = values(k, d + i * LANES);
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const __m512 weight = _mm512_set1_ps(weights[r * KEYS + k]);
            for (int i = 0; i < VECTORS; i++) {
                parts[r][i] = _mm512_fmadd_ps(weight, value[i], parts[r][i]);
            }
        }
    }
    for (int r = 0; r < R; r++) {
        for (int i = 0; i < VECTORS; i++) {
            _mm512_store_ps(sums + r * head + d + i * LANES, parts[r][i]);
        }
    }
}

template <int R, typename Values> void add_all_values(float * sums, const float * weights, const Values & values, int head, int count) {
    int d = 0;
    for (; d + 4 * LANES <= head; d += 4 * LANES) {
        add_values<R, 4>(sums, weights, values, head, d, count);
    }
    for (; d < head; d += LANES) {
        add_values<R, 1>(sums, weights, values, head, d, count);
    }
}

}  // namespace kernels
