// Products with Q4_0 weights: take the place of libggml-cpu's functions of the same names (ggml/src/ggml-cpu/repack.cpp), on
// the layout that these repack weights to when a model is loaded.
//
// A row of a result depends on nothing but its own inputs, to the last bit: however many rows a call has, each is
// computed by the same operations in the same order.

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "packed.h"
#include "single_rows.h"

namespace {

using namespace kernels;

constexpr int BLOCK = 32;    // numbers that share a scale
constexpr int COLUMNS = 8;   // columns of weights that are stored side by side
constexpr int UP = 8;        // how much more than they are weights are taken as

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

thread_local Scratch panel_memory;

// What a product needs of a row's block besides its numbers: its scale, and what to start from so that weights may be
// taken as 0 to 15 in place of -8 to 7.
struct RowFacts {
    int32_t start;
    float scale;
};

// One block of sixteen columns: their weights plus 8, in runs of four numbers a column, and their scales.
struct Weights {
    Bytes numbers[BLOCK / 4];
    Floats scales;
};

inline Weights unpack(const WeightBlock & first, const WeightBlock & second) {
    const Bytes sign = bytes_everywhere(0x88);
    Weights weights;
    for (int half = 0; half < 2; half++) {
        Bytes fours[2];
        take_fours(first.nibbles + 64 * half, second.nibbles + 64 * half, fours);
        for (int i = 0; i < 2; i++) {
            const Bytes nibbles = exclusive_or(fours[i], sign);
            weights.numbers[2 * half + i] = low_nibbles(nibbles);
            weights.numbers[4 + 2 * half + i] = high_nibbles(nibbles);
        }
    }
    weights.scales = halves_to_floats(first.scales, second.scales);
    return weights;
}

// sums[r] += the products of a block of each of R rows with sixteen columns: row r's numbers begin at 8 * r, and `stride`
// bytes lie between its runs of 8. Side by side, as one row's products wait for each other.
template <int R> inline void add_block(Floats * sums, const Weights & weights, const int8_t * numbers, int stride, const RowFacts * rows) {
    Dots products[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        products[r].begin(rows[r].start);
    }
#pragma GCC unroll 8
    for (int i = 0; i < BLOCK / 4; i++) {
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
            products[r].add(weights.numbers[i], numbers + 8 * r + i / 2 * stride + i % 2 * 4);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
        const Floats both_scales = mul(weights.scales, all(rows[r].scale));
        sums[r] = plus_product(sums[r], products[r].floats(), both_scales);
    }
}

using Columns = kernels::Columns<WeightBlock>;
using Rows = kernels::Rows<RowsBlock>;

// Up to ROWS4 * 4 rows, from the four `first` on, times `num_columns`, at most sixteen, of which `weights_of` gives the blocks.
template <int ROWS4, typename WeightsOf>
void tile(float * out, size_t out_stride, const WeightsOf & weights_of, int num_columns, const Rows & rows, const RowFacts * facts, int first) {
    Floats sums[ROWS4 * 4];
    for (auto & sum : sums) {
        sum = zeros();
    }
    const RowsBlock * fours[ROWS4];
    for (int y = 0; y < ROWS4; y++) {
        fours[y] = rows.four(first + y);
    }
    facts += static_cast<size_t>(first) * rows.blocks * 4;
    for (int b = 0; b < rows.blocks; b++) {
        const auto & weights = weights_of(b);
#pragma GCC unroll 4
        for (int y = 0; y < ROWS4; y++) {
            add_block<4>(sums + y * 4, weights, fours[y][b].numbers, BLOCK, facts + (y * rows.blocks + b) * 4);
        }
    }
    const int left = rows.count() - first * 4;
    for (int r = 0; r < ROWS4 * 4; r++) {
        if (r < left) {
            store_first(out + (first * 4 + r) * out_stride, sums[r], num_columns);
        }
    }
}

// All rows times sixteen columns. Where they are more than a tile, the weights are unpacked once for all of them.
void panel(float * out, size_t out_stride, const Columns & columns, const Rows & rows, const RowFacts * facts) {
    constexpr int AT_ONCE = 4;
    const auto multiply_with = [&](const auto & weights_of) {
        for (int first = 0; first < rows.num_fours(); first += AT_ONCE) {
            with_rows<AT_ONCE>(rows.num_fours() - first, [&](auto fours) {
                tile<fours()>(out, out_stride, weights_of, columns.count, rows, facts, first);
            });
        }
    };
    const auto unpacked = [&](int block) {
        columns.fetch_next(block);
        return unpack(columns.first[block], columns.second[block]);
    };
    if (rows.num_fours() <= AT_ONCE) {
        multiply_with(unpacked);
        return;
    }
    Weights * kept = panel_memory.take<Weights>(columns.blocks);
    for (int b = 0; b < columns.blocks; b++) {
        kept[b] = unpacked(b);
    }
    multiply_with([&](int block) -> const Weights & { return kept[block]; });
}

// One row times sixteen columns.
void row_tile(int blocks, float * out, const Columns & columns, const RowBlock * row, const RowFacts * facts) {
    Floats sum = zeros();
    for (int b = 0; b < blocks; b++) {
        columns.fetch_next(b);
        add_block<1>(&sum, unpack(columns.first[b], columns.second[b]), row[b].numbers, 8, facts + b);
    }
    store_first(out, sum, columns.count);
}

void take_facts(RowFacts * facts, const RowsBlock * rows, int count) {
    for (int i = 0; i < count; i++) {
        int32_t starts[4];
        starts_of_four(UP, rows[i].numbers, starts);
        for (int m = 0; m < 4; m++) {
            facts[i * 4 + m] = {starts[m], _cvtsh_ss(rows[i].scales[m])};
        }
    }
}

// The facts of each block of four rows.
const RowFacts * facts_of_rows(const Rows & rows, Scratch & scratch) {
    RowFacts * facts = scratch.take<RowFacts>(static_cast<size_t>(rows.num_fours()) * rows.blocks * 4);
    for (int four = 0; four < rows.num_fours(); four++) {
        take_facts(facts + static_cast<size_t>(four) * rows.blocks * 4, rows.four(four), rows.blocks);
    }
    return facts;
}

// Up to four single rows, one after the other, as four whose others are zeros.
const RowsBlock * pack(const RowBlock * rows, int count, int blocks, Scratch & scratch) {
    RowsBlock * packed = scratch.take<RowsBlock>(blocks);
    for (int b = 0; b < blocks; b++) {
        packed[b] = {};
        for (int r = 0; r < count; r++) {
            const RowBlock & row = rows[r * blocks + b];
            packed[b].scales[r] = row.scale;
            for (int run = 0; run < BLOCK / 8; run++) {
                std::memcpy(packed[b].numbers + (4 * run + r) * 8, row.numbers + 8 * run, 8);
            }
        }
    }
    return packed;
}

RowFacts * facts_of_row(const RowBlock * row, int count, Scratch & scratch) {
    RowFacts * facts = scratch.take<RowFacts>(count);
    for (int i = 0; i < count; i++) {
        facts[i] = {start_of(UP, row[i].numbers), _cvtsh_ss(row[i].scale)};
    }
    return facts;
}

thread_local Scratch facts_memory;
thread_local Scratch rest_memory;

void multiply(float * out, size_t out_stride, const WeightBlock * column, const Rows & rows, int num_columns) {
    const RowFacts * facts = facts_of_rows(rows, facts_memory);
    for (int c = 0; c < num_columns; c += 2 * COLUMNS, column += 2 * rows.blocks) {
        panel(out + c, out_stride, Columns(column, rows.blocks, num_columns - c), rows, facts);
    }
}

}  // namespace

namespace kernels {

PackedProduct original_q4_0_rows = nullptr;
PackedProduct original_q4_0_row = nullptr;

// out[r][c] = the products of `num_rows` rows (a multiple of 4) of n numbers with `num_columns` (a multiple of 8); and of the
// single rows that come after them.
void serving_q4_0_rows(int n, float * out, size_t out_stride, const void * weights, const void * rows, int num_rows, int num_columns) {
    if (!enabled) {
        original_q4_0_rows(n, out, out_stride, weights, rows, num_rows, num_columns);
        return;
    }
    const int blocks = n / BLOCK;
    const auto * packed = static_cast<const RowsBlock *>(rows);
    const auto * singles = reinterpret_cast<const RowBlock *>(packed + num_rows / 4 * blocks);
    const int rest = rows_after_fours();
    multiply(out, out_stride, static_cast<const WeightBlock *>(weights),
             {packed, pack(singles, rest, blocks, rest_memory), num_rows, rest, blocks}, num_columns);
    computed_ahead({weights, singles, blocks * sizeof(RowBlock)}, rest);
}

void serving_q4_0_row(int n, float * out, size_t stride, const void * weights, const void * row, int num_rows, int num_columns) {
    if (!enabled || num_rows != 1) {
        original_q4_0_row(n, out, stride, weights, row, num_rows, num_columns);
        return;
    }
    const int blocks = n / BLOCK;
    const auto * numbers = static_cast<const RowBlock *>(row);
    const auto * column = static_cast<const WeightBlock *>(weights);
    const SingleRow single{weights, row, blocks * sizeof(RowBlock)};
    if (was_computed(single)) {
        return;
    }
    if (const int rest = rows_of_few(); rest > 1) {
        multiply(out, stride_of_rows(), column, {nullptr, pack(numbers, rest, blocks, rest_memory), 0, rest, blocks}, num_columns);
        computed_ahead(single.next(), rest - 1);
        return;
    }
    const RowFacts * facts = facts_of_row(numbers, blocks, facts_memory);
    for (int c = 0; c < num_columns; c += 2 * COLUMNS, column += 2 * blocks) {
        row_tile(blocks, out + c, Columns(column, blocks, num_columns - c), numbers, facts);
    }
}

}  // namespace kernels
