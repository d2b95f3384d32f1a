// Products with Q8_0 weights. Q4_0 files may keep their embedding in Q8_0, and each token that is written multiplies with all
// of it.
//
// A row of a result depends on nothing but its own inputs, to the last bit.

#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace {

using namespace kernels;

constexpr int BLOCK = 32;    // numbers that share a scale
constexpr int COLUMNS = 16;  // rows of the weights that are multiplied at once: columns of the result
constexpr int RUNS = BLOCK / 4;

struct Block {
    uint16_t scale;
    int8_t numbers[BLOCK];
};

static_assert(sizeof(Block) == 34, "ggml's block_q8_0");

// One block of sixteen columns: their numbers, in runs of four numbers a column, and their scales.
struct alignas(64) Panel {
    EightBits numbers[RUNS];
    float scales[COLUMNS];
};

// A row's block: its scale, and what products start from, so that weights may be taken as more than they are.
struct RowFacts {
    int32_t start;
    float scale;
};

thread_local Scratch facts_memory;

// Blocks of up to sixteen columns, `stride` blocks apart; what is beyond `count` is 0.
void take_panel(Panel & panel, const Block * column, int64_t stride, int count) {
    Bytes runs[RUNS];
    take_runs(runs, [&](int c) {
        return c < count ? _mm256_loadu_si256(reinterpret_cast<const __m256i *>(column[c * stride].numbers)) : _mm256_setzero_si256();
    });
    for (int i = 0; i < RUNS; i++) {
        panel.numbers[i] = eight_bits(runs[i]);
    }
    uint16_t scales[COLUMNS] = {};
    for (int c = 0; c < count; c++) {
        scales[c] = column[c * stride].scale;
    }
    store(panel.scales, halves_to_floats(scales));
}

// out[R][COLUMNS], the first `columns` of them.
template <int R>
void tile(int blocks, float * out, int64_t out_stride, const Panel * panels, const Block * rows, int64_t row_stride, const RowFacts * facts,
          int columns) {
    Floats sums[R];
    for (auto & sum : sums) {
        sum = zeros();
    }
    for (int b = 0; b < blocks; b++) {
        EightBitDots products[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            products[r].begin(facts[r * blocks + b].start);
        }
#pragma GCC unroll 8
        for (int i = 0; i < RUNS; i++) {
            const EightBits weights = panels[b].numbers[i];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                products[r].add(weights, rows[r * row_stride + b].numbers + 4 * i);
            }
        }
        const Floats scales = load(panels[b].scales);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const Floats both_scales = mul(scales, all(facts[r * blocks + b].scale));
            sums[r] = plus_product(sums[r], products[r].floats(), both_scales);
        }
    }
    for (int r = 0; r < R; r++) {
        store_first(out + r * out_stride, sums[r], columns);
    }
}

const RowFacts * facts_of(const Block * rows, int64_t stride, int64_t num_rows, int blocks) {
    RowFacts * facts = facts_memory.take<RowFacts>(num_rows * blocks);
    for (int64_t r = 0; r < num_rows; r++) {
        for (int b = 0; b < blocks; b++) {
            const Block & block = rows[r * stride + b];
            facts[r * blocks + b] = {start_of(EIGHT_BITS_UP, block.numbers), _cvtsh_ss(block.scale)};
        }
    }
    return facts;
}

}  // namespace

namespace kernels {

void multiply_q8_0(const ComputeParams * params, const ProductArguments & of) {
    multiply<ROWS_OF_EIGHT_BITS>(params, of, facts_of, take_panel, [](auto rows, auto... arguments) { tile<rows()>(arguments...); });
}

}  // namespace kernels
