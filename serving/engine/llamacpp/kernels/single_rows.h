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
