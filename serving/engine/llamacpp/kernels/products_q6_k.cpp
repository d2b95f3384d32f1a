// Products with Q6_K weights, for x86 processors with AVX-512 and VNNI: of Q4_K_M files (Flow-Judge's) a good part, of many
// Q4_0 files the embedding.
//
// A row of a result depends on nothing but its own inputs, to the last bit.

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace {

using kernels::LANES;

constexpr int BLOCK = 256;  // numbers that share a scale of half precision
constexpr int PARTS = 16;   // of a block, each with a scale of 8 bits
constexpr int COLUMNS = 16;
constexpr int RUNS = BLOCK / 4;

// Weights: numbers of 6 bits, plus 32; the lower four bits of number i of each half of a block are in `low`, the upper
// two in `high` (block_q6_K).
struct Block {
    uint8_t low[BLOCK / 2];
    uint8_t high[BLOCK / 4];
    int8_t scales[PARTS];
    uint16_t scale;
};

// Activations (block_q8_K).
struct RowBlock {
    float scale;
    int8_t numbers[BLOCK];
    int16_t sums[PARTS];
};

static_assert(sizeof(Block) == 210 && sizeof(RowBlock) == 292, "ggml's blocks");

// One block of sixteen columns: their numbers plus 32, in runs of four numbers a column, and the scales of their parts.
struct alignas(64) Panel {
    uint8_t numbers[RUNS][COLUMNS * 4];
    float scales[PARTS][COLUMNS];
};

// -32 times the sums of the parts of a row's block, from which products with weights plus 32 start.
struct RowFacts {
    int32_t starts[PARTS];
};

thread_local kernels::Scratch facts_memory;

// The 256 numbers of a block, in order.
inline void unpack(const Block & block, __m512i (&numbers)[4]) {
    const __m512i four_bits = _mm512_set1_epi8(0x0F);
    const __m512i two_bits = _mm512_set1_epi8(0x30);
    const __m512i up = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
    const __m512i down = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
    constexpr int OR_OF_AND = 0xEA;  // (a & b) | c
    for (int half = 0; half < 2; half++) {
        const __m512i low = _mm512_loadu_si512(block.low + 64 * half);
        const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(block.high + 32 * half));
        const __m512i both = _mm512_broadcast_i64x4(high);
        const __m512i first = _mm512_and_si512(_mm512_sllv_epi16(both, up), two_bits);
        const __m512i second = _mm512_and_si512(_mm512_srlv_epi16(both, down), two_bits);
        numbers[2 * half] = _mm512_ternarylogic_epi32(low, four_bits, first, OR_OF_AND);
        numbers[2 * half + 1] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(low, 4), four_bits, second, OR_OF_AND);
    }
}

// Blocks of up to sixteen columns, `stride` blocks apart; what is beyond `count` is 0.
void take_panel(Panel & panel, const Block * column, int64_t stride, int count) {
    __m512 runs[RUNS / LANES][LANES];
    __m512 scales[LANES];
    for (int c = 0; c < COLUMNS; c++) {
        __m512i numbers[4] = {};
        scales[c] = _mm512_setzero_ps();
        if (c < count) {
            const Block & block = column[c * stride];
            unpack(block, numbers);
            const __m128i parts = _mm_loadu_si128(reinterpret_cast<const __m128i *>(block.scales));
            scales[c] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(parts)), _mm512_set1_ps(_cvtsh_ss(block.scale)));
        }
        for (int i = 0; i < RUNS / LANES; i++) {
            runs[i][c] = _mm512_castsi512_ps(numbers[i]);
        }
    }
    kernels::transpose(scales);
    for (int part = 0; part < PARTS; part++) {
        _mm512_store_ps(panel.scales[part], scales[part]);
    }
    for (int i = 0; i < RUNS / LANES; i++) {
        kernels::transpose(runs[i]);
        for (int run = 0; run < LANES; run++) {
            _mm512_store_ps(reinterpret_cast<float *>(panel.numbers[i * LANES + run]), runs[i][run]);
        }
    }
}

// out[R][COLUMNS], the columns of `valid`.
template <int R>
void tile(int blocks, float * out, int64_t out_stride, const Panel * panels, const RowBlock * rows, int64_t row_stride, const RowFacts * facts,
          __mmask16 valid) {
    __m512 sums[R];
    for (auto & sum : sums) {
        sum = _mm512_setzero_ps();
    }
    for (int b = 0; b < blocks; b++) {
        __m512 of_block[R];
        for (auto & sum : of_block) {
            sum = _mm512_setzero_ps();
        }
        for (int part = 0; part < PARTS; part++) {
            __m512i products[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                products[r] = _mm512_set1_epi32(facts[r * blocks + b].starts[part]);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const __m512i weights = _mm512_load_si512(panels[b].numbers[4 * part + i]);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    int32_t run;
                    std::memcpy(&run, rows[r * row_stride + b].numbers + 16 * part + 4 * i, sizeof run);
                    products[r] = _mm512_dpbusd_epi32(products[r], weights, _mm512_set1_epi32(run));
                }
            }
            const __m512 scales = _mm512_load_ps(panels[b].scales[part]);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                of_block[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[r]), scales, of_block[r]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            sums[r] = _mm512_fmadd_ps(of_block[r], _mm512_set1_ps(rows[r * row_stride + b].scale), sums[r]);
        }
    }
    for (int r = 0; r < R; r++) {
        _mm512_mask_storeu_ps(out + r * out_stride, valid, sums[r]);
    }
}

const RowFacts * facts_of(const RowBlock * rows, int64_t stride, int64_t num_rows, int blocks) {
    RowFacts * facts = facts_memory.take<RowFacts>(num_rows * blocks);
    for (int64_t r = 0; r < num_rows; r++) {
        for (int b = 0; b < blocks; b++) {
            const __m256i sums = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(rows[r * stride + b].sums));
            const __m512i starts = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), _mm512_cvtepi16_epi32(sums)), 5);
            _mm512_storeu_si512(facts[r * blocks + b].starts, starts);
        }
    }
    return facts;
}

}  // namespace

namespace kernels {

void multiply_q6_k(const ComputeParams * params, const ProductArguments & of) {
    multiply(params, of, facts_of, take_panel, [](auto rows, auto... arguments) { tile<rows()>(arguments...); });
}

}  // namespace kernels
