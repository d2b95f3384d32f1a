#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <type_traits>

#include "vectors.h"

struct ggml_tensor;

namespace kernels {

// ggml_compute_params of ggml/src/ggml-cpu/ggml-cpu-impl.h, as far as it is read here.
struct ComputeParams {
    int thread;
    int num_threads;
    size_t work_bytes;
    void * work;
    const void * pool;  // of threads
};

// libggml-cpu's own functions, for what is not computed here, and for everything while `enabled` is false.
using Attention = void (*)(const ComputeParams *, ggml_tensor *);
using Product = bool (*)(const ComputeParams *, int64_t, int64_t, int64_t, const void *, int64_t, const void *, int64_t, void *, int64_t, int, int, int);
using Tiled = bool (*)(const ComputeParams *, ggml_tensor *);
using PackedProduct = void (*)(int, float *, size_t, const void *, const void *, int, int);
using Operation = bool (*)(const ComputeParams *, ggml_tensor *);
extern Attention original_attention;
extern Product original_product;
extern PackedProduct original_q4_0_rows;
extern PackedProduct original_q4_0_row;
extern PackedProduct original_q4_k_rows;
extern PackedProduct original_q4_k_row;
extern Tiled original_tiled;
extern Operation original_operation;
extern bool enabled;

// The kernels, with the arguments of the functions whose place they take.
#pragma GCC visibility push(default)
extern "C" {
void serving_q4_0_rows(int n, float * out, size_t out_stride, const void * weights, const void * rows, int num_rows, int num_columns);
void serving_q4_0_row(int n, float * out, size_t out_stride, const void * weights, const void * row, int num_rows, int num_columns);
void serving_q4_k_rows(int n, float * out, size_t out_stride, const void * weights, const void * rows, int num_rows, int num_columns);
void serving_q4_k_row(int n, float * out, size_t out_stride, const void * weights, const void * row, int num_rows, int num_columns);
bool serving_product(const ComputeParams * params, int64_t m, int64_t n, int64_t k, const void * a, int64_t lda, const void * b, int64_t ldb,
                     void * c, int64_t ldc, int a_type, int b_type, int c_type);
void serving_attention(const ComputeParams * params, ggml_tensor * result);
bool serving_tiled(const ComputeParams * params, ggml_tensor * result);
bool serving_operation(const ComputeParams * params, ggml_tensor * result);
int serving_memalign(void ** memory, size_t alignment, size_t size);
}
#pragma GCC visibility pop

// c[n][m] = b[n][k] times a[m][k]; k and the strides lda and ldb in blocks, ldc in numbers.
struct ProductArguments {
    int64_t m, n, k;
    const void * a;
    int64_t lda;
    const void * b;
    int64_t ldb;
    void * c;
    int64_t ldc;
};

// The thread's share of a product with Q8_0 weights and rows, or Q6_K weights and Q8_K rows.
void multiply_q8_0(const ComputeParams * params, const ProductArguments & of);
void multiply_q6_k(const ComputeParams * params, const ProductArguments & of);

// The columns that a thread multiplies, of `columns` that are taken `at_once`.
struct Share {
    int64_t first;
    int64_t last;

    Share(const ComputeParams * params, int64_t columns, int64_t at_once) {
        const int64_t groups = (columns + at_once - 1) / at_once;
        first = groups * params->thread / params->num_threads * at_once;
        last = groups * (params->thread + 1) / params->num_threads * at_once;
    }
};

// Asks for memory that is read soon: on many machines one core's reading falls far behind its computing where the processor is
// left to find out by itself what comes next. Beyond the end of an array it does no harm.
// Always inlined: GCC leaves out calls of a function that only does this.
[[gnu::always_inline]] inline void fetch(const void * first, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) {
        _mm_prefetch(static_cast<const char *>(first) + i, _MM_HINT_T0);
    }
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

// Calls `compute` with the number of rows at hand, at most MOST, as a constant.
template <int MOST, typename Compute> inline void with_rows(int64_t rows, const Compute & compute) {
    if constexpr (MOST > 1) {
        if (rows < MOST) {
            with_rows<MOST - 1>(rows, compute);
            return;
        }
    }
    compute(std::integral_constant<int, MOST>());
}

// The thread's share of a product with weights as they are in the file, sixteen columns at a time: `take_panel` lays a block of
// these out, `facts_of` says what is to be known of the rows' blocks, and `tile` multiplies up to ROWS rows, a constant.
template <int ROWS, typename Panel, typename Block, typename RowBlock, typename RowFacts, typename Tile>
void multiply(const ComputeParams * params, const ProductArguments & of,
              const RowFacts * (*facts_of)(const RowBlock * rows, int64_t stride, int64_t num_rows, int blocks),
              void (*take_panel)(Panel & panel, const Block * column, int64_t stride, int count), const Tile & tile) {
    constexpr int COLUMNS = 16;
    static thread_local Scratch panel_memory;
    const int blocks = static_cast<int>(of.k);
    const auto * weights = static_cast<const Block *>(of.a);
    const auto * rows = static_cast<const RowBlock *>(of.b);
    const RowFacts * facts = facts_of(rows, of.ldb, of.n, blocks);
    Panel * panels = panel_memory.take<Panel>(blocks);
    const Share share(params, of.m, COLUMNS);
    for (int64_t c = share.first; c < share.last; c += COLUMNS) {
        const int count = static_cast<int>(std::min<int64_t>(COLUMNS, of.m - c));
        const Block * next = weights + (c + COLUMNS) * of.lda;
        for (int b = 0; b < blocks; b++) {
            fetch(next + b * COLUMNS, COLUMNS * sizeof(Block));
            take_panel(panels[b], weights + c * of.lda + b, of.lda, count);
        }
        float * out = static_cast<float *>(of.c) + c;
        for (int64_t r = 0; r < of.n; r += ROWS) {
            with_rows<ROWS>(of.n - r, [&](auto num_rows) {
                tile(num_rows, blocks, out + r * of.ldc, of.ldc, panels, rows + r * of.ldb, of.ldb, facts + r * blocks, count);
            });
        }
    }
}

}  // namespace kernels
