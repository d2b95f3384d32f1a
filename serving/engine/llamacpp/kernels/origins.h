// Where tiles of caches come from, as the engine says: equal tiles need to be read once.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace kernels {

// Tiles of several sequences with the same number, which is not 0, are equal.
struct Origins {
    const int32_t * numbers = nullptr;  // [sequence of the cache][tile]
    int64_t sequences = 0;
    int64_t tiles = 0;
};

// What the thread that began the running computation was told.
Origins origins_of(const ComputeParams * params);

// Tells the other threads of the computation; by its first thread, at each operation, so that none of them ever sees what was
// said of another computation.
void pass_on_origins(const ComputeParams * params);

}  // namespace kernels
