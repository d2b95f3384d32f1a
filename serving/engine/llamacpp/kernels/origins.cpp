#include "origins.h"

#include <mutex>
#include <unordered_map>

#include "attention_tile.h"
#include "kernels.h"

namespace {

thread_local kernels::Origins told;
std::mutex mutex;
std::unordered_map<const void *, kernels::Origins> of_pools;

}  // namespace

namespace kernels {

Origins origins_of(const ComputeParams * params) {
    if (params->thread == 0) {
        return told;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = of_pools.find(params->pool);
    return found == of_pools.end() ? Origins{} : found->second;
}

void pass_on_origins(const ComputeParams * params) {
    if (params->thread == 0 && params->num_threads > 1) {
        const std::lock_guard<std::mutex> lock(mutex);
        of_pools[params->pool] = told;
    }
}

}  // namespace kernels

// Says of the caches that this thread computes with next where their tiles of `tile_keys` keys come from: for each sequence of
// the cache and each tile a number; equal numbers other than 0 say that the tiles are equal. They are read until the next
// call, with null at the latest. Returns whether that is of use: whether the tiles are those of the kernel.
extern "C" __attribute__((visibility("default"))) bool serving_kernels_share(const int32_t * numbers, int64_t sequences, int64_t tiles,
                                                                             int64_t tile_keys) {
    using namespace kernels;
    told = tile_keys == KEYS && numbers != nullptr ? Origins{numbers, sequences, tiles} : Origins{};
    return tile_keys == KEYS;
}
