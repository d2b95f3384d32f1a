// What the kernels ask of a processor: vectors of sixteen floats, and products of small integers. The kernels are compiled
// once for each of the instruction sets below; a vector is one register with AVX-512, else a pair.
#pragma once

#if defined(__AVX512VNNI__)
#include "vectors_avx512.h"
#elif defined(__AVXVNNI__)
#include "dots_avxvnni.h"
#else
#include "dots_avx2.h"
#endif

namespace kernels {

// exp(x) for x <= 0 to about one unit in the last place; exactly 0 where that is less than the least float, and no number
// where x is none. Reduction and polynomial after Cephes' expf.
inline Floats exp_of(Floats x) {
    x = max(all(-110.0f), x);
    const Floats n = nearest(mul(x, all(1.44269504088896341f)));
    Floats r = minus_product(x, n, all(0.693359375f));
    r = minus_product(r, n, all(-2.12194440e-4f));
    Floats p = all(1.9875691500e-4f);
    p = plus_product(all(1.3981999507e-3f), p, r);
    p = plus_product(all(8.3334519073e-3f), p, r);
    p = plus_product(all(4.1665795894e-2f), p, r);
    p = plus_product(all(1.6666665459e-1f), p, r);
    p = plus_product(all(5.0000001201e-1f), p, r);
    p = plus_product(add(r, all(1.0f)), p, mul(r, r));
    return times_power_of_two(p, n);
}

}  // namespace kernels
