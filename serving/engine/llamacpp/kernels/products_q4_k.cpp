// Products with Q4_K weights: most of a Q4_K_M file (Flow-Judge's). They take the place of libggml-cpu's functions
// (ggml/src/ggml-cpu/repack.cpp), on the layout that it repacks weights to when a model is loaded.
//
// A row of a result depends on nothing but its own inputs, to the last bit.

#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "packed.h"
#include "single_rows.h"

namespace {

using namespace kernels;

constexpr int BLOCK = 256;   // numbers that share a pair of scales of half precision
constexpr int PARTS = 8;     // of a block, each with a scale and a minimum of 6 bits
constexpr int GROUP = 8;     // columns of weights that are stored side by side
constexpr int COLUMNS = 16;  // that are multiplied at once

// Weights (block_q4_Kx8): scale * number - minimum, of eight columns. Each part has twelve bytes of scales and minima. Byte
// j of a column's runs of eight holds a number of an even part in its lower half, and of the part after it in its upper.
struct WeightBlock {
    uint16_t scales[GROUP];
    uint16_t minima[GROUP];
    uint8_t of_parts[PARTS][12];
    uint8_t nibbles[PARTS / 2][4][GROUP * 8];
};

// Activations of four rows (block_q8_Kx4), in runs of 8 numbers a row; and of a single one (block_q8_K).
struct RowsBlock {
    float scales[4];
    int8_t numbers[4 * BLOCK];
    int16_t sums[PARTS / 2][4][4];  // of 16 numbers: two parts, of each row
};

struct RowBlock {
    float scale;
    int8_t numbers[BLOCK];
    int16_t sums[2 * PARTS];
};

static_assert(sizeof(WeightBlock) == 1152 && sizeof(RowsBlock) == 1168 && sizeof(RowBlock) == 292, "ggml's blocks");

// One block of sixteen columns: its numbers in runs of four a column, and what its parts are multiplied with.
struct alignas(64) Panel {
    uint8_t numbers[PARTS][8][COLUMNS * 4];
    float scales[PARTS][COLUMNS];
    float minima[PARTS][COLUMNS];
};

// A row's block: where its numbers are, in runs of 8, and the sums of its parts.
struct RowFacts {
    const int8_t * numbers;
    float scale;
    float sums[PARTS];
};

using Columns = kernels::Columns<WeightBlock>;
using Rows = kernels::Rows<RowsBlock>;

thread_local Scratch panel_memory;
thread_local Scratch facts_memory;
thread_local Scratch rest_memory;

// The scales and minima of a part of eight columns, 8 bytes each.
inline void six_bits(const uint8_t * twelve, uint64_t & scales, uint64_t & minima) {
    uint32_t words[3];
    std::memcpy(words, twelve, sizeof words);
    const uint32_t upper_scales = (words[2] & 0x0F0F0F0F) | ((words[0] >> 6 & 0x03030303) << 4);
    const uint32_t upper_minima = (words[2] >> 4 & 0x0F0F0F0F) | ((words[1] >> 6 & 0x03030303) << 4);
    scales = (words[0] & 0x3F3F3F3F) | static_cast<uint64_t>(upper_scales) << 32;
    minima = (words[1] & 0x3F3F3F3F) | static_cast<uint64_t>(upper_minima) << 32;
}

// What the parts of a block of sixteen columns are multiplied with.
class Factors {
  public:
    Factors(const WeightBlock & first, const WeightBlock & second)
        : scales_(halves_to_floats(first.scales, second.scales)), minima_(halves_to_floats(first.minima, second.minima)) {
        for (int part = 0; part < PARTS; part++) {
            six_bits(first.of_parts[part], of_scales_[part][0], of_minima_[part][0]);
            six_bits(second.of_parts[part], of_scales_[part][1], of_minima_[part][1]);
        }
    }

    Floats scale(int part) const { return mul(bytes_to_floats(of_scales_[part][0], of_scales_[part][1]), scales_); }
    Floats minimum(int part) const { return mul(bytes_to_floats(of_minima_[part][0], of_minima_[part][1]), minima_); }

  private:
    Floats scales_;
    Floats minima_;
    uint64_t of_scales_[PARTS][2];
    uint64_t of_minima_[PARTS][2];
};

void take_panel(Panel & panel, const WeightBlock & first, const WeightBlock & second) {
    for (int pair = 0; pair < PARTS / 2; pair++) {
        for (int run = 0; run < 4; run++) {
            Bytes fours[2];
            take_fours(first.nibbles[pair][run], second.nibbles[pair][run], fours);
            for (int i = 0; i < 2; i++) {
                store_bytes(panel.numbers[2 * pair][2 * run + i], low_nibbles(fours[i]));
                store_bytes(panel.numbers[2 * pair + 1][2 * run + i], high_nibbles(fours[i]));
            }
        }
    }
    const Factors factors(first, second);
    for (int part = 0; part < PARTS; part++) {
        store(panel.scales[part], factors.scale(part));
        store(panel.minima[part], factors.minimum(part));
    }
}

// out[R][COLUMNS], the first `columns` of them, of rows that are packed by four.
template <int R>
void tile(int blocks, float * out, size_t out_stride, const Panel * panels, const RowFacts * facts, int columns) {
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
            for (auto & product : products) {
                product.begin(0);
            }
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const Bytes weights = load_bytes(panels[b].numbers[part][i]);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) {
                    products[r].add(weights, facts[r * blocks + b].numbers + (4 * part + i / 2) * 4 * 8 + i % 2 * 4);
                }
            }
            const Floats scales = load(panels[b].scales[part]);
            const Floats minima = load(panels[b].minima[part]);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                of_block[r] = plus_product(of_block[r], products[r].floats(), scales);
                of_block[r] = minus_product(of_block[r], all(facts[r * blocks + b].sums[part]), minima);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            sums[r] = plus_product(sums[r], of_block[r], all(facts[r * blocks + b].scale));
        }
    }
    for (int r = 0; r < R; r++) {
        store_first(out + r * out_stride, sums[r], columns);
    }
}

// A single row, as `tile` has it, without a panel: its weights are used once.
void single(int blocks, float * out, const Columns & columns, const RowFacts * facts) {
    Floats sum = zeros();
    for (int b = 0; b < blocks; b++) {
        columns.fetch_next(b);
        const WeightBlock & first = columns.first[b];
        const WeightBlock & second = columns.second[b];
        const Factors factors(first, second);
        Floats of_block = zeros();
        for (int pair = 0; pair < PARTS / 2; pair++) {
            Dots products[2];
            products[0].begin(0);
            products[1].begin(0);
            for (int run = 0; run < 4; run++) {
                Bytes fours[2];
                take_fours(first.nibbles[pair][run], second.nibbles[pair][run], fours);
                const int8_t * numbers = facts[b].numbers + 64 * pair + 8 * run;
                for (int i = 0; i < 2; i++) {
                    products[0].add(low_nibbles(fours[i]), numbers + 4 * i);
                    products[1].add(high_nibbles(fours[i]), numbers + 32 + 4 * i);
                }
            }
            for (int i = 0; i < 2; i++) {
                const int part = 2 * pair + i;
                of_block = plus_product(of_block, products[i].floats(), factors.scale(part));
                of_block = minus_product(of_block, all(facts[b].sums[part]), factors.minimum(part));
            }
        }
        sum = plus_product(sum, of_block, all(facts[b].scale));
    }
    store_first(out, sum, columns.count);
}

const RowFacts * facts_of_rows(const Rows & rows) {
    RowFacts * facts = facts_memory.take<RowFacts>(static_cast<size_t>(rows.count()) * rows.blocks);
    for (int r = 0; r < rows.count(); r++) {
        const int m = r % 4;
        for (int b = 0; b < rows.blocks; b++) {
            const RowsBlock & block = rows.four(r / 4)[b];
            RowFacts & fact = facts[r * rows.blocks + b];
            fact.numbers = block.numbers + 8 * m;
            fact.scale = block.scales[m];
            for (int part = 0; part < PARTS; part++) {
                const int16_t * sums = block.sums[part / 2][m] + part % 2 * 2;
                fact.sums[part] = static_cast<float>(sums[0] + sums[1]);
            }
        }
    }
    return facts;
}

// Up to four single rows, one after the other, as four.
const RowsBlock * pack(const RowBlock * rows, int count, int blocks) {
    RowsBlock * packed = rest_memory.take<RowsBlock>(blocks);
    for (int b = 0; b < blocks; b++) {
        for (int r = 0; r < count; r++) {
            const RowBlock & row = rows[r * blocks + b];
            packed[b].scales[r] = row.scale;
            for (int run = 0; run < BLOCK / 8; run++) {
                std::memcpy(packed[b].numbers + (4 * run + r) * 8, row.numbers + 8 * run, 8);
            }
            for (int four = 0; four < PARTS / 2; four++) {
                std::memcpy(packed[b].sums[four][r], row.sums + 4 * four, sizeof packed[b].sums[four][r]);
            }
        }
    }
    return packed;
}

const RowFacts * facts_of_row(const RowBlock * row, int blocks) {
    RowFacts * facts = facts_memory.take<RowFacts>(blocks);
    for (int b = 0; b < blocks; b++) {
        facts[b].numbers = row[b].numbers;
        facts[b].scale = row[b].scale;
        for (int part = 0; part < PARTS; part++) {
            facts[b].sums[part] = static_cast<float>(row[b].sums[2 * part] + row[b].sums[2 * part + 1]);
        }
    }
    return facts;
}

void multiply(float * out, size_t out_stride, const WeightBlock * column, const Rows & rows, int num_columns) {
    constexpr int AT_ONCE = ROWS_OF_PRODUCT;
    const int blocks = rows.blocks;
    const RowFacts * facts = facts_of_rows(rows);
    Panel * panels = panel_memory.take<Panel>(blocks);
    for (int c = 0; c < num_columns; c += COLUMNS, column += 2 * blocks) {
        const Columns columns(column, blocks, num_columns - c);
        for (int b = 0; b < blocks; b++) {
            columns.fetch_next(b);
            take_panel(panels[b], columns.first[b], columns.second[b]);
        }
        for (int r = 0; r < rows.count(); r += AT_ONCE) {
            with_rows<AT_ONCE>(rows.count() - r, [&](auto at_once) {
                tile<at_once()>(blocks, out + r * out_stride + c, out_stride, panels, facts + static_cast<size_t>(r) * blocks, columns.count);
            });
        }
    }
}

}  // namespace

namespace kernels {

PackedProduct original_q4_k_rows = nullptr;
PackedProduct original_q4_k_row = nullptr;

void serving_q4_k_rows(int n, float * out, size_t out_stride, const void * weights, const void * rows, int num_rows, int num_columns) {
    if (!enabled) {
        original_q4_k_rows(n, out, out_stride, weights, rows, num_rows, num_columns);
        return;
    }
    const int blocks = n / BLOCK;
    const auto * packed = static_cast<const RowsBlock *>(rows);
    const auto * singles = reinterpret_cast<const RowBlock *>(packed + num_rows / 4 * blocks);
    const int rest = rows_after_fours();
    multiply(out, out_stride, static_cast<const WeightBlock *>(weights), {packed, pack(singles, rest, blocks), num_rows, rest, blocks},
             num_columns);
    computed_ahead({weights, singles, blocks * sizeof(RowBlock)}, rest);
}

void serving_q4_k_row(int n, float * out, size_t stride, const void * weights, const void * row, int num_rows, int num_columns) {
    if (!enabled || num_rows != 1) {
        original_q4_k_row(n, out, stride, weights, row, num_rows, num_columns);
        return;
    }
    const int blocks = n / BLOCK;
    const auto * numbers = static_cast<const RowBlock *>(row);
    const auto * column = static_cast<const WeightBlock *>(weights);
    const SingleRow one{weights, row, blocks * sizeof(RowBlock)};
    if (was_computed(one)) {
        return;
    }
    if (const int rest = rows_of_few(); rest > 1) {
        multiply(out, stride_of_rows(), column, {nullptr, pack(numbers, rest, blocks), 0, rest, blocks}, num_columns);
        computed_ahead(one.next(), rest - 1);
        return;
    }
    const RowFacts * facts = facts_of_row(numbers, blocks);
    for (int c = 0; c < num_columns; c += COLUMNS, column += 2 * blocks) {
        const Columns columns(column, blocks, num_columns - c);
        single(blocks, out + c, columns, facts);
    }
}

}  // namespace kernels
