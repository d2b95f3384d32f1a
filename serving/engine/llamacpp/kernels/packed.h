// What libggml-cpu's repacked products have in common: rows in fours, columns in eights.
#pragma once

#include "kernels.h"

namespace kernels {

// The rows of a product in fours; the last may be fewer, which are packed elsewhere.
template <typename Block> struct Rows {
    const Block * packed;
    const Block * rest;
    int num_packed;
    int num_rest;
    int blocks;  // of a row

    int count() const { return num_packed + num_rest; }
    int num_fours() const { return num_packed / 4 + (num_rest > 0); }
    const Block * four(int i) const { return 4 * i < num_packed ? packed + i * blocks : rest; }
};

// Sixteen columns of the weights, `blocks` blocks each; an odd eight at the end is its own neighbour, whose results are left out.
template <typename Block> struct Columns {
    const Block * first;
    const Block * second;
    int blocks;
    int count;  // 8 or 16

    Columns(const Block * weights, int num_blocks, int left)
        : first(weights), second(left > 8 ? weights + num_blocks : weights), blocks(num_blocks), count(left > 8 ? 16 : 8) {}

    // The same block of the columns after these.
    [[gnu::always_inline]] void fetch_next(int block) const {
        fetch(first + 2 * blocks + block, sizeof *first);
        fetch(first + 3 * blocks + block, sizeof *first);
    }
};

}  // namespace kernels
