// Fused attention over a cache in half precision, for x86 processors with AVX-512: takes the place of libggml-cpu's
// ggml_compute_forward_flash_attn_ext (ggml/src/ggml-cpu/ops.cpp), which is called for what this does not compute.
//
// One key is read once for all queries that attend to it: the heads that share it, and the tokens of a tile. Scores,
// weights and sums are single precision (softmax by running maximum and sum, https://arxiv.org/abs/2205.14135).
//
// A query's result depends on nothing but the query and the keys that its mask leaves, to the last bit: keys are
// taken in tiles that begin at fixed positions of the cache, whatever else is in a call.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "ggml.h"
#include "kernels.h"

namespace {

using kernels::LANES;
using kernels::Scratch;

constexpr int KEYS = 64;         // keys of a tile
constexpr int ROWS = 48;         // queries of a tile, at most; a multiple of LANES
constexpr int ROWS_AT_ONCE = 6;  // whose sums are in registers
constexpr int LONGEST_HEAD = 256;

struct Memory {
    float * queries;  // [ROWS][head]
    float * keys;     // [head][KEYS]
    float * values;   // [KEYS][head]
    float * scores;   // [ROWS][KEYS]
    float * sums;     // [ROWS][head]
    alignas(64) float greatest[ROWS];
    alignas(64) float maximum[ROWS];
    alignas(64) float total[ROWS];
};

thread_local Scratch scratch;

Memory memory_for(int head) {
    float * start = scratch.take<float>((2 * ROWS + 2 * KEYS) * head + ROWS * KEYS);
    Memory memory;
    memory.queries = start;
    memory.keys = memory.queries + ROWS * head;
    memory.values = memory.keys + KEYS * head;
    memory.scores = memory.values + KEYS * head;
    memory.sums = memory.scores + ROWS * KEYS;
    return memory;
}

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
inline void fetch_next(const char * key_or_value, size_t stride, int bytes) {
    for (int i = 0; i < bytes; i += 64) {
        _mm_prefetch(key_or_value + KEYS * stride + i, _MM_HINT_T0);
    }
}

// Keys of a tile as floats, [head][KEYS]; those beyond `count` are 0.
void take_keys(float * out, const char * keys, size_t stride, int head, int count, bool few_queries) {
    for (int k = 0; k < KEYS; k += LANES) {
        for (int i = k; few_queries && i < std::min(k + LANES, count); i++) {
            fetch_next(keys + i * stride, stride, head * 2);
        }
        for (int d = 0; d < head; d += LANES) {
            __m512 rows[LANES];
            for (int i = 0; i < LANES; i++) {
                rows[i] = k + i < count ? halves_to_floats(keys + (k + i) * stride + d * 2) : _mm512_setzero_ps();
            }
            kernels::transpose(rows);
            for (int i = 0; i < LANES; i++) {
                _mm512_store_ps(out + (d + i) * KEYS + k, rows[i]);
            }
        }
    }
}

// Values of a tile as floats, [KEYS][head]; those beyond `count` are 0.
void take_values(float * out, const char * values, size_t stride, int head, int count) {
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

// What a call of attention is about, in ggml's terms.
struct Call {
    const ggml_tensor * queries;
    const ggml_tensor * keys;
    const ggml_tensor * values;
    const ggml_tensor * mask;
    ggml_tensor * out;
    float scale;
    int head;
    int tokens;
    int heads_per_key;

    explicit Call(ggml_tensor * result)
        : queries(result->src[0]), keys(result->src[1]), values(result->src[2]), mask(result->src[3]), out(result) {
        std::memcpy(&scale, result->op_params, sizeof scale);
        head = static_cast<int>(queries->ne[0]);
        tokens = static_cast<int>(queries->ne[1]);
        heads_per_key = static_cast<int>(queries->ne[2] / keys->ne[2]);
    }

    // Whether this is the attention that is computed here.
    bool can() const {
        float bias_and_cap[2];
        std::memcpy(bias_and_cap, reinterpret_cast<const float *>(out->op_params) + 1, sizeof bias_and_cap);
        return queries->type == GGML_TYPE_F32 && keys->type == GGML_TYPE_F16 && values->type == GGML_TYPE_F16 && mask != nullptr &&
               mask->type == GGML_TYPE_F16 && out->src[4] == nullptr && bias_and_cap[0] == 0.0f && bias_and_cap[1] == 0.0f &&
               head % LANES == 0 && head <= LONGEST_HEAD && values->ne[0] == head && keys->ne[0] == head &&
               queries->ne[2] % keys->ne[2] == 0 && keys->ne[2] == values->ne[2] && keys->ne[3] == queries->ne[3] &&
               values->ne[3] == queries->ne[3] && mask->ne[2] == 1 && out->nb[0] == sizeof(float) && queries->nb[0] == sizeof(float) &&
               keys->nb[0] == 2 && values->nb[0] == 2 && mask->nb[0] == 2;
    }

    const char * mask_of(int token, int64_t sequence) const {
        return static_cast<const char *>(mask->data) + token * mask->nb[1] + sequence % mask->ne[3] * mask->nb[3];
    }
};

// Queries of neighbouring tokens, and of one or more heads of keys: for each of these `rows`, of which row = token *
// heads_per_key + head. Where there are few, all heads are taken together, so that the cache is read from front to back.
struct Tile {
    int64_t sequence;
    int64_t key_head;
    int num_heads;
    int first_row;
    int rows;

    int all_rows() const { return num_heads * rows; }
    int token(const Call & call, int row) const { return (first_row + row % rows) / call.heads_per_key; }
    int64_t query_head(const Call & call, int row) const {
        return (key_head + row / rows) * call.heads_per_key + (first_row + row % rows) % call.heads_per_key;
    }
};

bool all_masked(const Call & call, const Tile & tile, int64_t key, int count) {
    const __m256i minus_infinity = _mm256_set1_epi16(static_cast<int16_t>(0xFC00));
    for (int token = tile.token(call, 0); token <= tile.token(call, tile.rows - 1); token++) {
        const char * mask = call.mask_of(token, tile.sequence) + key * 2;
        for (int i = 0; i < count; i += LANES) {
            const __mmask16 valid = static_cast<__mmask16>((1u << std::min(count - i, LANES)) - 1);
            const __m256i sixteen = _mm256_maskz_loadu_epi16(valid, mask + i * 2);
            if (_mm256_mask_cmpneq_epi16_mask(valid, sixteen, minus_infinity)) {
                return false;
            }
        }
    }
    return true;
}

// Adds the mask to the scores, and finds the greatest of each row. Keys beyond `count` count as masked.
void mask_scores(const Call & call, const Tile & tile, Memory & memory, int64_t key, int count) {
    const __m512 minus_infinity = _mm512_set1_ps(-INFINITY);
    for (int r = 0; r < tile.all_rows(); r++) {
        float * scores = memory.scores + r * KEYS;
        const char * mask = call.mask_of(tile.token(call, r), tile.sequence) + key * 2;
        __m512 greatest = minus_infinity;
        for (int i = 0; i < KEYS / LANES; i++) {
            const __mmask16 valid = static_cast<__mmask16>((1u << std::clamp(count - i * LANES, 0, LANES)) - 1);
            const __m512 bias = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(valid, mask + i * LANES * 2));
            const __m512 masked = _mm512_mask_add_ps(minus_infinity, valid, _mm512_load_ps(scores + i * LANES), bias);
            _mm512_store_ps(scores + i * LANES, masked);
            greatest = _mm512_max_ps(greatest, masked);
        }
        memory.greatest[r] = _mm512_reduce_max_ps(greatest);
    }
}

// Moves each row's running maximum, and scales what was added up relative to the one before.
void move_maxima(const Call & call, const Tile & tile, Memory & memory) {
    for (int r = 0; r < tile.all_rows(); r += LANES) {
        const __m512 before = _mm512_load_ps(memory.maximum + r);
        const __m512 maximum = _mm512_max_ps(before, _mm512_load_ps(memory.greatest + r));
        const __mmask16 moved = _mm512_cmp_ps_mask(maximum, before, _CMP_GT_OQ);
        const __m512 factors = _mm512_mask_blend_ps(moved, _mm512_set1_ps(1.0f), exp_of(_mm512_sub_ps(before, maximum)));
        _mm512_store_ps(memory.maximum + r, maximum);
        _mm512_store_ps(memory.total + r, _mm512_mul_ps(_mm512_load_ps(memory.total + r), factors));
        alignas(64) float of_row[LANES];
        _mm512_store_ps(of_row, factors);
        for (unsigned left = moved; left != 0; left &= left - 1) {
            const int i = __builtin_ctz(left);
            float * sums = memory.sums + (r + i) * call.head;
            for (int d = 0; d < call.head; d += LANES) {
                _mm512_store_ps(sums + d, _mm512_mul_ps(_mm512_load_ps(sums + d), _mm512_set1_ps(of_row[i])));
            }
        }
    }
}

// Turns scores into weights relative to the running maxima, and adds them up.
void weigh(const Tile & tile, Memory & memory) {
    for (int r = 0; r < tile.all_rows(); r++) {
        float * scores = memory.scores + r * KEYS;
        const float maximum = memory.maximum[r] == -INFINITY ? 0.0f : memory.maximum[r];
        __m512 total = _mm512_setzero_ps();
        for (int i = 0; i < KEYS / LANES; i++) {
            const __m512 weights = exp_of(_mm512_sub_ps(_mm512_load_ps(scores + i * LANES), _mm512_set1_ps(maximum)));
            _mm512_store_ps(scores + i * LANES, weights);
            total = _mm512_add_ps(total, weights);
        }
        memory.total[r] += _mm512_reduce_add_ps(total);
    }
}

void take_queries(const Call & call, const Tile & tile, Memory & memory) {
    std::fill_n(memory.greatest, ROWS, -INFINITY);
    std::fill_n(memory.maximum, ROWS, -INFINITY);
    std::fill_n(memory.total, ROWS, 0.0f);
    const __m512 scale = _mm512_set1_ps(call.scale);
    for (int r = 0; r < tile.all_rows(); r++) {
        const char * query = static_cast<const char *>(call.queries->data) + tile.token(call, r) * call.queries->nb[1] +
                             tile.query_head(call, r) * call.queries->nb[2] + tile.sequence * call.queries->nb[3];
        for (int d = 0; d < call.head; d += LANES) {
            const __m512 numbers = _mm512_loadu_ps(reinterpret_cast<const float *>(query) + d);
            _mm512_store_ps(memory.queries + r * call.head + d, _mm512_mul_ps(numbers, scale));
            _mm512_store_ps(memory.sums + r * call.head + d, _mm512_setzero_ps());
        }
    }
}

// out[head][query head][token][sequence], as ggml has it: the heads of a token side by side.
void write(const Call & call, const Tile & tile, const Memory & memory) {
    for (int r = 0; r < tile.all_rows(); r++) {
        const __m512 factor = _mm512_set1_ps(memory.total[r] == 0.0f ? 0.0f : 1.0f / memory.total[r]);
        char * out = static_cast<char *>(call.out->data) + tile.query_head(call, r) * call.out->nb[1] +
                     tile.token(call, r) * call.out->nb[2] + tile.sequence * call.out->nb[3];
        for (int d = 0; d < call.head; d += LANES) {
            const __m512 sums = _mm512_load_ps(memory.sums + r * call.head + d);
            _mm512_storeu_ps(reinterpret_cast<float *>(out) + d, _mm512_mul_ps(sums, factor));
        }
    }
}

// A tile of keys or values of the cache, of one head.
struct Cached {
    const char * first;
    size_t stride;
    int count;

    Cached(const ggml_tensor * tensor, const Tile & tile, int head, int64_t key, int num_keys)
        : first(static_cast<const char *>(tensor->data) + key * tensor->nb[1] + (tile.key_head + head) * tensor->nb[2] +
                tile.sequence * tensor->nb[3]),
          stride(tensor->nb[1]), count(num_keys) {}
};

void score_head(const Call & call, const Tile & tile, Memory & memory, int head, const Cached & keys) {
    take_keys(memory.keys, keys.first, keys.stride, call.head, keys.count, tile.rows <= ROWS_AT_ONCE);
    const int row = head * tile.rows;
    for (int r = row; r < row + tile.rows; r += ROWS_AT_ONCE) {
        kernels::with_rows<ROWS_AT_ONCE>(row + tile.rows - r, [&](auto rows) {
            score<rows()>(memory.scores + r * KEYS, memory.queries + r * call.head, memory.keys, call.head);
        });
    }
}

void add_head(const Call & call, const Tile & tile, Memory & memory, int head, const Cached & values) {
    const int row = head * tile.rows;
    const auto add = [&](int r, const auto & source) {
        kernels::with_rows<ROWS_AT_ONCE>(row + tile.rows - r, [&](auto rows) {
            add_all_values<rows()>(memory.sums + r * call.head, memory.scores + r * KEYS, source, call.head, values.count);
        });
    };
    if (tile.rows <= ROWS_AT_ONCE) {
        add(row, InCache{values.first, values.stride});
        return;
    }
    take_values(memory.values, values.first, values.stride, call.head, values.count);
    for (int r = row; r < row + tile.rows; r += ROWS_AT_ONCE) {
        add(r, AsFloats{memory.values, call.head});
    }
}

void attend(const Call & call, const Tile & tile, Memory & memory) {
    take_queries(call, tile, memory);
    for (int64_t key = 0; key < call.keys->ne[1]; key += KEYS) {
        const int count = static_cast<int>(std::min<int64_t>(KEYS, call.keys->ne[1] - key));
        if (all_masked(call, tile, key, count)) {
            continue;
        }
        for (int head = 0; head < tile.num_heads; head++) {
            score_head(call, tile, memory, head, Cached(call.keys, tile, head, key, count));
        }
        mask_scores(call, tile, memory, key, count);
        move_maxima(call, tile, memory);
        weigh(tile, memory);
        for (int head = 0; head < tile.num_heads; head++) {
            add_head(call, tile, memory, head, Cached(call.values, tile, head, key, count));
        }
    }
    write(call, tile, memory);
}

}  // namespace

namespace kernels {

Attention original_attention = nullptr;

void serving_attention(const ComputeParams * params, ggml_tensor * result) {
    const Call call(result);
    if (!enabled || !call.can()) {
        original_attention(params, result);
        return;
    }
    Memory memory = memory_for(call.head);
    const int rows = call.tokens * call.heads_per_key;
    const int tiles = (rows + ROWS - 1) / ROWS;
    const int64_t sequences = call.queries->ne[3];
    const int key_heads = static_cast<int>(call.keys->ne[2]);
    const bool together = rows * key_heads <= ROWS && sequences >= params->num_threads;
    const int heads = together ? key_heads : 1;
    const int64_t work = sequences * (key_heads / heads) * tiles;
    for (int64_t i = params->thread; i < work; i += params->num_threads) {
        const int64_t pair = i / tiles;
        const int first = static_cast<int>(i % tiles) * ROWS;
        const int64_t head = pair % (key_heads / heads) * heads;
        attend(call, {pair / (key_heads / heads), head, heads, first, std::min(ROWS, rows - first)}, memory);
    }
}

}  // namespace kernels
