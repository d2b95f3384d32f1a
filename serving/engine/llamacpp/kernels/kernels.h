#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

struct ggml_tensor;

namespace kernels {

// ggml_compute_params of ggml/src/ggml-cpu/ggml-cpu-impl.h, as far as it is read here.
struct ComputeParams {
    int thread;
    int num_threads;
};

// libggml-cpu's own functions, for what is not computed here, and for everything while `enabled` is false.
using Attention = void (*)(const ComputeParams *, ggml_tensor *);
using Product = bool (*)(const ComputeParams *, int64_t, int64_t, int64_t, const void *, int64_t, const void *, int64_t, void *, int64_t, int, int, int);
using PackedProduct = void (*)(int, float *, size_t, const void *, const void *, int, int);
extern Attention original_attention;
extern Product original_product;
extern PackedProduct original_rows;
extern PackedProduct original_row;
extern bool enabled;

// The kernels, with the arguments of the functions whose place they take.
#pragma GCC visibility push(default)
extern "C" {
void serving_q4_0_rows(int n, float * out, size_t out_stride, const void * weights, const void * rows, int num_rows, int num_columns);
void serving_q4_0_row(int n, float * out, size_t out_stride, const void * weights, const void * row, int num_rows, int num_columns);
bool serving_product(const ComputeParams * params, int64_t m, int64_t n, int64_t k, const void * a, int64_t lda, const void * b, int64_t ldb,
                     void * c, int64_t ldc, int a_type, int b_type, int c_type);
void serving_attention(const ComputeParams * params, ggml_tensor * result);
}
#pragma GCC visibility pop

inline int32_t sum_of_32(const int8_t * numbers) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(numbers));
    const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}

// Memory of a thread, which grows and is kept.
class Scratch {
  public:
    template <typename T> T * take(size_t count) {
        const size_t wanted = (count * sizeof(T) + 63) / 64 * 64;
        if (wanted > size_) {
            memory_.reset(std::aligned_alloc(64, wanted));
            if (!memory_) {
                std::abort();
            }
            size_ = wanted;
        }
        return static_cast<T *>(memory_.get());
    }

  private:
    struct Free {
        void operator()(void * memory) const { std::free(memory); }
    };
    std::unique_ptr<void, Free> memory_;
    size_t size_ = 0;
};

}  // namespace kernels

// `compute(R)` for a constant R of 1 to 6 (or 8), the number of rows at hand.
#define SERVING_FOR_ROWS_UP_TO_6(rows, compute) \
    switch (rows) {                             \
        case 1: compute(1); break;              \
        case 2: compute(2); break;              \
        case 3: compute(3); break;              \
        case 4: compute(4); break;              \
        case 5: compute(5); break;              \
        default: compute(6);                    \
    }
#define SERVING_FOR_ROWS_UP_TO_8(rows, compute) \
    switch (rows) {                             \
        case 1: compute(1); break;              \
        case 2: compute(2); break;              \
        case 3: compute(3); break;              \
        case 4: compute(4); break;              \
        case 5: compute(5); break;              \
        case 6: compute(6); break;              \
        case 7: compute(7); break;              \
        default: compute(8);                    \
    }
