// Products with Q8_0 weights, for x86 processors with AVX-512 and VNNI. Q4_0 files may keep their embedding in Q8_0, and
// each token that is written multiplies with all of it.
//
// A row of a result depends on nothing but its own inputs, to the last bit.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace {

constexpr int BLOCK = 32;    // numbers that share a scale
constexpr int COLUMNS = 16;  // rows of the weights that are multiplied at once: columns of the result
constexpr int RUNS = BLOCK / 4;

struct Block {
    uint16_t scale;
    int8_t numbers[BLOCK];
};

static_assert(sizeof(Block) == 34, "ggml's block_q8_0");

// One block of sixteen columns: their numbers plus 128, in runs of four numbers a column, and their scales.
struct alignas(64) Panel {
    uint8_t numbers[RUNS][COLUMNS * 4];
    float scales[COLUMNS];
};

// A row's block: its scale, and -128 times the sum of its numbers, from which products with weights plus 128 start.
struct RowFacts {
    int32_t start;
    float scale;
};

thread_local kernels::Scratch facts_memory;

// Blocks of up to sixteen columns, `stride` blocks apart; what is beyond `count` is 0.
void take_panel(Panel & panel, const Block * column, int64_t stride, int count) {
    const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
    __m512i rows[RUNS];
    alignas(32) uint16_t scales[COLUMNS] = {};
    for (int i = 0; i < 8; i++) {
        const auto numbers = [&](int c) {
            return c < count ? _mm256_loadu_si256(reinterpret_cast<const __m256i *>(column[c * stride].numbers)) : _mm256_setzero_si256();
        };
        rows[i] = _mm512_inserti64x4(_mm512_castsi256_si512(numbers(i)), numbers(i + 8), 1);
    }
    for (int c = 0; c < count; c++) {
        scales[c] = column[c * stride].scale;
    }
    _mm512_store_ps(panel.scales, _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i *>(scales))));
    // Two transpositions of 8 x 8 runs side by side.
    __m512i t[RUNS];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (int i = 0; i < 4; i++) {
        const __m512i first = _mm512_permutex2var_epi64(rows[i], low, rows[i + 4]);
        const __m512i second = _mm512_permutex2var_epi64(rows[i], high, rows[i + 4]);
        _mm512_store_si512(panel.numbers[i], _mm512_xor_si512(first, sign));
        _mm512_store_si512(panel.numbers[i + 4], _mm512_xor_si512(second, sign));
    }
}

// out[R][COLUMNS], the columns of `valid`.
template <int R>
void tile(int blocks, float * out, int64_t out_stride, const Panel * panels, const Block * rows, int64_t row_stride, const RowFacts * facts,
          __mmask16 valid) {
    __m512 sums[R];
    for (auto & sum : sums) {
        sum = _mm512_setzero_ps();
    }
    for (int b = 0; b < blocks; b++) {
        __m512i products[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            products[r] = _mm512_set1_epi32(facts[r * blocks + b].start);
        }
#pragma GCC unroll 8
        for (int i = 0; i < RUNS; i++) {
            const __m512i weights = _mm512_load_si512(panels[b].numbers[i]);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                int32_t run;
                std::memcpy(&run, rows[r * row_stride + b].numbers + 4 * i, sizeof run);
                products[r] = _mm512_dpbusd_epi32(products[r], weights, _mm512_set1_epi32(run));
            }
        }
        const __m512 scales = _mm512_load_ps(panels[b].scales);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(products[r]), scales);
            sums[r] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(facts[r * blocks + b].scale), sums[r]);
        }
    }
    for (int r = 0; r < R; r++) {
        _mm512_mask_storeu_ps(out + r * out_stride, valid, sums[r]);
    }
}

const RowFacts * facts_of(const Block * rows, int64_t stride, int64_t num_rows, int blocks) {
    RowFacts * facts = facts_memory.take<RowFacts>(num_rows * blocks);
    for (int64_t r = 0; r < num_rows; r++) {
        for (int b = 0; b < blocks; b++) {
            const Block & block = rows[r * stride + b];
            facts[r * blocks + b] = {-128 * kernels::sum_of_32(block.numbers), _cvtsh_ss(block.scale)};
        }
    }
    return facts;
}

}  // namespace

namespace kernels {

void multiply_q8_0(const ComputeParams * params, const ProductArguments & of) {
    multiply(params, of, facts_of, take_panel, [](auto rows, auto... arguments) { tile<rows()>(arguments...); });
}

}  // namespace kernels
