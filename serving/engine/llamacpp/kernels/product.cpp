// Takes the place of libggml-cpu's llamafile_sgemm (ggml/src/ggml-cpu/llamafile/sgemm.cpp), which a product with weights
// that were not repacked is offered to first, and which is called for the types that are not multiplied here.

#include "ggml.h"
#include "kernels.h"

namespace kernels {

Product original_product = nullptr;
Tiled original_tiled = nullptr;

// ggml_compute_forward_mul_mat_tiled (ggml/src/ggml-cpu/tiled/tiled.cpp) is offered products of eight rows and more
// before that: it is to leave those alone that are multiplied here.
bool serving_tiled(const ComputeParams * params, ggml_tensor * result) {
    return !(enabled && result->src[0]->type == GGML_TYPE_Q6_K) && original_tiled(params, result);
}

bool serving_product(const ComputeParams * params, int64_t m, int64_t n, int64_t k, const void * a, int64_t lda, const void * b, int64_t ldb,
                     void * c, int64_t ldc, int a_type, int b_type, int c_type) {
    if (enabled && c_type == GGML_TYPE_F32) {
        if (a_type == GGML_TYPE_Q8_0 && b_type == GGML_TYPE_Q8_0) {
            multiply_q8_0(params, {m, n, k, a, lda, b, ldb, c, ldc});
            return true;
        }
        if (a_type == GGML_TYPE_Q6_K && b_type == GGML_TYPE_Q8_K) {
            multiply_q6_k(params, {m, n, k, a, lda, b, ldb, c, ldc});
            return true;
        }
    }
    return original_product(params, m, n, k, a, lda, b, ldb, c, ldc, a_type, b_type, c_type);
}

}  // namespace kernels
