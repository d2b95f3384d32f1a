// llama.cpp multiplies rows in fours, and what is left of them one by one, which unpacks all weights for each. Here they are
// multiplied together: with the fours, or at the first of them, and nothing is done at the calls for the others.
#pragma once

#include <cstddef>

namespace kernels {

struct SingleRow {
    const void * weights;  // of the first column
    const void * row;
    size_t bytes;  // from a row to the next

    SingleRow next() const { return {weights, static_cast<const char *>(row) + bytes, bytes}; }
};

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

// How many rows the product that this thread computes has after its fours; 0 where that is not known.
int rows_after_fours();

// How many rows it has, where that is fewer than four and known; else 0.
int rows_of_few();

// Numbers from a row of its results to the next.
size_t stride_of_rows();

// The products of so many rows from this one on, with weights from these on, are there.
void computed_ahead(const SingleRow & first, int count);

// Whether this row's are, which is asked once.
bool was_computed(const SingleRow & row);

}  // namespace kernels
