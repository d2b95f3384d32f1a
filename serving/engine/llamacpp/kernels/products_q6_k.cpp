// Products with Q6_K weights: of Q4_K_M files (Flow-Judge's) a good part, of many Q4_0 files the embedding.
//
// A row of a result depends on nothing but its own inputs, to the last bit.

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace {

using namespace kernels;

constexpr int BLOCK = 256;  // numbers that share a scale of half precision
constexpr int PARTS = 16;   // of a block, each with a scale of 8 bits
constexpr int COLUMNS = 16;
constexpr int RUNS = BLOCK / 4;
constexpr int UP = 32;  // how much more than they are weights are taken as

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

// What products with the parts of a row's block start from, so that weights may be taken as 0 to 63 in place of -32 to 31.
struct RowFacts {
    int32_t starts[PARTS];
};

thread_local Scratch facts_memory;

// The 256 numbers of a block, in order.
inline void unpack(const Block & block, Bytes (&numbers)[4]) {
    const auto load = [](const uint8_t * bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(bytes)); };
    const auto both = [](__m256i low, __m256i high) {
        const __m256i four_bits = _mm256_and_si256(low, _mm256_set1_epi8(0x0F));
        return _mm256_or_si256(four_bits, _mm256_and_si256(high, _mm256_set1_epi8(0x30)));
    };
    for (int half = 0; half < 2; half++) {
        const __m256i first = load(block.low + 64 * half);
        const __m256i second = load(block.low + 64 * half + 32);
        const __m256i high = load(block.high + 32 * half);
        numbers[2 * half] = join(both(first, _mm256_slli_epi16(high, 4)), both(second, _mm256_slli_epi16(high, 2)));
        numbers[2 * half + 1] =
            join(both(_mm256_srli_epi16(first, 4), high), both(_mm256_srli_epi16(second, 4), _mm256_srli_epi16(high, 2)));
    }
}

// Blocks of up to sixteen columns, `stride` blocks apart; what is beyond `count` is 0.
void take_panel(Panel & panel, const Block * column, int64_t stride, int count) {
    Floats runs[RUNS / LANES][LANES];
    Floats scales[LANES];
    for (int c = 0; c < COLUMNS; c++) {
        Bytes numbers[4] = {};
        scales[c] = zeros();
        if (c < count) {
            const Block & block = column[c * stride];
            unpack(block, numbers);
            scales[c] = mul(signed_bytes_to_floats(block.scales), all(_cvtsh_ss(block.scale)));
        }
        for (int i = 0; i < RUNS / LANES; i++) {
            runs[i][c] = bytes_as_floats(numbers[i]);
        }
    }
    transpose(scales);
    for (int part = 0; part < PARTS; part++) {
        store(panel.scales[part], scales[part]);
    }
    for (int i = 0; i < RUNS / LANES; i++) {
        transpose(runs[i]);
        for (int run = 0; run < LANES; run++) {
            store(reinterpret_cast<float *>(panel.numbers[i * LANES + run]), runs[i][run]);
        }
    }
}

// out[R][COLUMNS], the first `columns` of them.
template <int R>
void tile(int blocks, float * out, int64_t out_stride, const Panel * panels, const RowBlock * rows, int64_t row_stride, const RowFacts * facts,
          int columns) {
    Floats sums[R];
    for (auto & sum : sums) {
        sum = zeros();
    }
    for (int b = 0; b < blocks; b++) {
        Floats of_block[R];
        for (auto & sum : of_block) {
            sum = zeros();
        }
        for (int part = 0; part < PARTS; part++) {
            Dots products[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                products[r].begin(facts[r * blocks + b].starts[part]);
            }
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                const Bytes weights = load_bytes(panels[b].numbers[4 * part + i]);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    products[r].add(weights, rows[r * row_stride + b].numbers + 16 * part + 4 * i);
                }
            }
            const Floats scales = load(panels[b].scales[part]);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                of_block[r] = plus_product(of_block[r], products[r].floats(), scales);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            sums[r] = plus_product(sums[r], of_block[r], all(rows[r * row_stride + b].scale));
        }
    }
    for (int r = 0; r < R; r++) {
        store_first(out + r * out_stride, sums[r], columns);
    }
}

const RowFacts * facts_of(const RowBlock * rows, int64_t stride, int64_t num_rows, int blocks) {
    RowFacts * facts = facts_memory.take<RowFacts>(num_rows * blocks);
    for (int64_t r = 0; r < num_rows; r++) {
        for (int b = 0; b < blocks; b++) {
            const RowBlock & block = rows[r * stride + b];
            starts_of_parts(UP, block.numbers, block.sums, facts[r * blocks + b].starts);
        }
    }
    return facts;
}

}  // namespace

namespace kernels {

void multiply_q6_k(const ComputeParams * params, const ProductArguments & of) {
    multiply<ROWS_OF_PRODUCT>(params, of, facts_of, take_panel, [](auto rows, auto... arguments) { tile<rows()>(arguments...); });
}

}  // namespace kernels
