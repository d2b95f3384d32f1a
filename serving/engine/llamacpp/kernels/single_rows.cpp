// Knows the product that a thread computes: takes the place of libggml-cpu's ggml_cpu_extra_compute_forward
// (ggml/src/ggml-cpu/traits.cpp), which computes operations on repacked weights, and computes them by it.

#include "single_rows.h"

#include "ggml.h"
#include "kernels.h"
#include "origins.h"

namespace {

thread_local const ggml_tensor * product = nullptr;
thread_local kernels::SingleRow next_row{};
thread_local int num_computed = 0;

}  // namespace

namespace kernels {

Operation original_operation = nullptr;

int rows_after_fours() { return product == nullptr ? 0 : static_cast<int>(product->src[1]->ne[1] % 4); }

int rows_of_few() { return product != nullptr && product->src[1]->ne[1] < 4 ? rows_after_fours() : 0; }

size_t stride_of_rows() { return product->nb[1] / sizeof(float); }

void computed_ahead(const SingleRow & first, int count) {
    next_row = first;
    num_computed = count;
}

bool was_computed(const SingleRow & row) {
    if (num_computed == 0 || row.weights != next_row.weights || row.row != next_row.row) {
        return false;
    }
    computed_ahead(next_row.next(), num_computed - 1);
    return true;
}

bool serving_operation(const ComputeParams * params, ggml_tensor * result) {
    pass_on_origins(params);
    product = enabled && result->op == GGML_OP_MUL_MAT ? result : nullptr;
    num_computed = 0;
    const bool done = original_operation(params, result);
    product = nullptr;
    return done;
}

}  // namespace kernels
