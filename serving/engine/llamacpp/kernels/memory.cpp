// Weights, caches and working memory in huge pages, where Linux gives them to who asks (transparent_hugepage/enabled is
// `madvise` or `always`): each of these is read from end to end for every token, and there are more pages of 4 KiB in it than
// the processor keeps addresses of. Elsewhere nothing changes.

#include <stdlib.h>
#include <sys/mman.h>

#include "kernels.h"

namespace {

constexpr size_t HUGE_PAGE = 2 << 20;
constexpr size_t LARGE = 2 * HUGE_PAGE;  // from here on, what rounding to huge pages can cost is less than what is asked for

}  // namespace

// In the place of libggml-base's calls of posix_memalign, with its arguments and its results. Asks before the memory is
// written to for the first time, which is when a page is found for it.
int kernels::serving_memalign(void ** memory, size_t alignment, size_t size) {
    if (size < LARGE) {
        return posix_memalign(memory, alignment, size);
    }
    if (const int failure = posix_memalign(memory, std::max(alignment, HUGE_PAGE), size)) {
        return failure;
    }
    madvise(*memory, size, MADV_HUGEPAGE);  // refused by kernels without
    return 0;
}
