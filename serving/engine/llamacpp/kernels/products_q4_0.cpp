// Products with Q4_0 weights, for x86 processors with AVX-512 and VNNI: take the place of libggml-cpu's functions of the
// same names (ggml/src/ggml-cpu/repack.cpp), on the layout that these repack weights to when a model is loaded.
//
// A row of a result depends on nothing but its own inputs, to the last bit: however many rows a call has, each is
// computed by the same operations in the same order.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace {

using kernels::Scratch;

constexpr int BLOCK = 32;    // numbers that share a scale
constexpr int COLUMNS = 8;   // columns of weights that are stored side by side

// Weights (block_q4_0x8): byte j of a column holds numbers j and 16 + j of its block, as q - 8, in runs of 8 bytes
// a column: bytes 0 to 7 of each of the eight, then bytes 8 to 15.
struct WeightBlock {
    uint16_t scales[COLUMNS];
    uint8_t nibbles[COLUMNS * BLOCK / 2];
};

// Activations of four rows (block_q8_0x4), in runs of 8 numbers a row; and of a single one (block_q8_0).
struct RowsBlock {
    uint16_t scales[4];
    int8_t numbers[4 * BLOCK];
};

struct RowBlock {
    uint16_t scale;
    int8_t numbers[BLOCK];
};

static_assert(sizeof(WeightBlock) == 144 && sizeof(RowsBlock) == 136 && sizeof(RowBlock) == 34, "ggml's blocks");

// What a product needs of a row's block besides its numbers: its scale, and what to start from so that weights may be
// taken as 0 to 15 in place of -8 to 7: -8 times the sums of the numbers that even and odd lanes multiply.
struct RowFacts {
    int32_t start[2];
    float scale;
    int32_t unused;
};

inline float half_to_float(uint16_t half) { return _cvtsh_ss(half); }

// The weights of eight columns and one block, as four vectors of 0 to 15 (numbers 0-7, 8-15, 16-23, 24-31 of each column),
// and their scales, each twice.
struct Weights {
    __m512i numbers[4];
    __m512 scales;
};

inline Weights unpack(const WeightBlock & block) {
    const __m512i low = _mm512_set1_epi8(0x0F);
    const __m512i eight = _mm512_set1_epi8(0x08);
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    constexpr int AND_THEN_XOR = 0x6A;  // (a & b) ^ c
    Weights weights;
    for (int i = 0; i < 2; i++) {
        const __m512i bytes = _mm512_loadu_si512(block.nibbles + 64 * i);
        weights.numbers[i] = _mm512_ternarylogic_epi32(bytes, low, eight, AND_THEN_XOR);
        weights.numbers[2 + i] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(bytes, 4), low, eight, AND_THEN_XOR);
    }
    const __m256 scales = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(block.scales)));
    weights.scales = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(scales));
    return weights;
}

// Eight bytes, in all places of a vector.
inline __m512i everywhere(const void * bytes) {
    int64_t eight;
    std::memcpy(&eight, bytes, sizeof eight);
    return _mm512_set1_epi64(eight);
}

// sum += the products of one row's block with eight columns; `stride` bytes lie between its runs of 8 numbers.
inline __m512 add_block(__m512 sum, const Weights & weights, const int8_t * numbers, int stride, const RowFacts & row) {
    __m512i products = everywhere(row.start);
    for (int i = 0; i < 4; i++) {
        products = _mm512_dpbusd_epi32(products, weights.numbers[i], everywhere(numbers + stride * i));
    }
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(products), weights.scales);
    return _mm512_fmadd_ps(scaled, _mm512_set1_ps(row.scale), sum);
}

// Adds the two lanes of each column of two groups of columns: sixteen results.
inline __m512 sixteen(__m512 first, __m512 second) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_add_ps(_mm512_permutex2var_ps(first, even, second), _mm512_permutex2var_ps(first, odd, second));
}

// ROWS4 * 4 rows times GROUPS * 8 columns.
template <int ROWS4, int GROUPS>
void tile(int blocks, float * out, size_t out_stride, const WeightBlock * weights, const RowsBlock * rows, const RowFacts * facts) {
    __m512 sums[ROWS4 * 4][GROUPS];
    for (auto & row : sums) {
        for (auto & sum : row) {
            sum = _mm512_setzero_ps();
        }
    }
    for (int b = 0; b < blocks; b++) {
        Weights unpacked[GROUPS];
        for (int g = 0; g < GROUPS; g++) {
            unpacked[g] = unpack(weights[g * blocks + b]);
        }
#pragma GCC unroll 4
        for (int y = 0; y < ROWS4; y++) {
            const RowsBlock & block = rows[y * blocks + b];
            const RowFacts * fact = facts + (y * blocks + b) * 4;
#pragma GCC unroll 4
            for (int m = 0; m < 4; m++) {
#pragma GCC unroll 2
                for (int g = 0; g < GROUPS; g++) {
                    sums[y * 4 + m][g] = add_block(sums[y * 4 + m][g], unpacked[g], block.numbers + 8 * m, BLOCK, fact[m]);
                }
            }
        }
    }
    for (int r = 0; r < ROWS4 * 4; r++) {
        if constexpr (GROUPS == 2) {
            _mm512_storeu_ps(out + r * out_stride, sixteen(sums[r][0], sums[r][1]));
        } else {
            _mm512_mask_storeu_ps(out + r * out_stride, 0x00FF, sixteen(sums[r][0], sums[r][0]));
        }
    }
}

template <int GROUPS>
void panel(int blocks, float * out, size_t out_stride, const WeightBlock * weights, const RowsBlock * rows, const RowFacts * facts,
           int rows4) {
    int y = 0;
    for (; y + 2 <= rows4; y += 2) {
        tile<2, GROUPS>(blocks, out + y * 4 * out_stride, out_stride, weights, rows + y * blocks, facts + y * blocks * 4);
    }
    if (y < rows4) {
        tile<1, GROUPS>(blocks, out + y * 4 * out_stride, out_stride, weights, rows + y * blocks, facts + y * blocks * 4);
    }
}

// One row times GROUPS * 8 columns.
template <int GROUPS> void row_tile(int blocks, float * out, const WeightBlock * weights, const RowBlock * row, const RowFacts * facts) {
    __m512 sums[GROUPS];
    for (auto & sum : sums) {
        sum = _mm512_setzero_ps();
    }
    for (int b = 0; b < blocks; b++) {
#pragma GCC unroll 4
        for (int g = 0; g < GROUPS; g++) {
            sums[g] = add_block(sums[g], unpack(weights[g * blocks + b]), row[b].numbers, 8, facts[b]);
        }
    }
    for (int g = 0; g + 2 <= GROUPS; g += 2) {
        _mm512_storeu_ps(out + g * COLUMNS, sixteen(sums[g], sums[g + 1]));
    }
    if constexpr (GROUPS == 1) {
        _mm512_mask_storeu_ps(out, 0x00FF, sixteen(sums[0], sums[0]));
    }
}

const __m512i EVERY_ONE = _mm512_set1_epi8(1);

// The facts of four rows' blocks.
RowFacts * facts_of_rows(const RowsBlock * rows, int count, Scratch & scratch) {
    RowFacts * facts = scratch.take<RowFacts>(static_cast<size_t>(count) * 4);
    for (int i = 0; i < count; i++) {
        __m512i sums = _mm512_setzero_si512();
        sums = _mm512_dpbusd_epi32(sums, EVERY_ONE, _mm512_loadu_si512(rows[i].numbers));
        sums = _mm512_dpbusd_epi32(sums, EVERY_ONE, _mm512_loadu_si512(rows[i].numbers + 64));
        const __m256i both = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
        alignas(32) int32_t starts[8];
        _mm256_store_si256(reinterpret_cast<__m256i *>(starts), _mm256_slli_epi32(_mm256_sub_epi32(_mm256_setzero_si256(), both), 3));
        for (int m = 0; m < 4; m++) {
            facts[i * 4 + m] = {{starts[2 * m], starts[2 * m + 1]}, half_to_float(rows[i].scales[m]), 0};
        }
    }
    return facts;
}

RowFacts * facts_of_row(const RowBlock * row, int count, Scratch & scratch) {
    RowFacts * facts = scratch.take<RowFacts>(count);
    for (int i = 0; i < count; i++) {
        const __m256i numbers = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(row[i].numbers));
        const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm512_castsi512_si256(EVERY_ONE), numbers);
        __m128i both = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
        both = _mm_add_epi32(both, _mm_shuffle_epi32(both, 0x4E));
        both = _mm_slli_epi32(_mm_sub_epi32(_mm_setzero_si128(), both), 3);
        facts[i] = {{_mm_cvtsi128_si32(both), _mm_extract_epi32(both, 1)}, half_to_float(row[i].scale), 0};
    }
    return facts;
}

thread_local Scratch facts_memory;

}  // namespace

namespace kernels {

PackedProduct original_rows = nullptr;
PackedProduct original_row = nullptr;

// out[r][c] = the products of `num_rows` rows (a multiple of 4) of n numbers with `num_columns` (a multiple of 8).
void serving_q4_0_rows(int n, float * out, size_t out_stride, const void * weights, const void * rows, int num_rows, int num_columns) {
    if (!enabled) {
        original_rows(n, out, out_stride, weights, rows, num_rows, num_columns);
        return;
    }
    const int blocks = n / BLOCK;
    const auto * all_rows = static_cast<const RowsBlock *>(rows);
    const auto * column = static_cast<const WeightBlock *>(weights);
    const RowFacts * facts = facts_of_rows(all_rows, num_rows / 4 * blocks, facts_memory);
    int c = 0;
    for (; c + 2 * COLUMNS <= num_columns; c += 2 * COLUMNS, column += 2 * blocks) {
        panel<2>(blocks, out + c, out_stride, column, all_rows, facts, num_rows / 4);
    }
    if (c < num_columns) {
        panel<1>(blocks, out + c, out_stride, column, all_rows, facts, num_rows / 4);
    }
}

void serving_q4_0_row(int n, float * out, size_t stride, const void * weights, const void * row, int num_rows, int num_columns) {
    if (!enabled || num_rows != 1) {
        original_row(n, out, stride, weights, row, num_rows, num_columns);
        return;
    }
    const int blocks = n / BLOCK;
    const auto * numbers = static_cast<const RowBlock *>(row);
    const auto * column = static_cast<const WeightBlock *>(weights);
    const RowFacts * facts = facts_of_row(numbers, blocks, facts_memory);
    int c = 0;
    for (; c + 4 * COLUMNS <= num_columns; c += 4 * COLUMNS, column += 4 * blocks) {
        row_tile<4>(blocks, out + c, column, numbers, facts);
    }
    for (; c < num_columns; c += COLUMNS, column += blocks) {
        row_tile<1>(blocks, out + c, column, numbers, facts);
    }
}

}  // namespace kernels
