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

// out[8][stride]: eight numbers of 16 bits of each of sixteen rows, from `offset` bytes on, rows to columns.
inline void transpose_halves(uint16_t * out, int stride, const char * const (&rows)[16], size_t offset) {
    const auto eight = [&](int row) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(rows[row] + offset)); };
    __m256i of[8];  // of row i, and in the upper half of row 8 + i
    for (int i = 0; i < 8; i++) {
        of[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(eight(i)), eight(8 + i), 1);
    }
    __m256i twos[8];
    for (int i = 0; i < 4; i++) {
        twos[i] = _mm256_unpacklo_epi16(of[2 * i], of[2 * i + 1]);
        twos[4 + i] = _mm256_unpackhi_epi16(of[2 * i], of[2 * i + 1]);
    }
    __m256i fours[8];
    for (int i = 0; i < 4; i++) {
        fours[2 * i] = _mm256_unpacklo_epi32(twos[2 * i], twos[2 * i + 1]);
        fours[2 * i + 1] = _mm256_unpackhi_epi32(twos[2 * i], twos[2 * i + 1]);
    }
    const auto store_column = [&](int column, __m256i numbers) {
        _mm256_store_si256(reinterpret_cast<__m256i *>(out + column * stride), numbers);
    };
    for (int i = 0; i < 2; i++) {
        const int column = 4 * i;
        store_column(column, _mm256_unpacklo_epi64(fours[4 * i], fours[4 * i + 2]));
        store_column(column + 1, _mm256_unpackhi_epi64(fours[4 * i], fours[4 * i + 2]));
        store_column(column + 2, _mm256_unpacklo_epi64(fours[4 * i + 1], fours[4 * i + 3]));
        store_column(column + 3, _mm256_unpackhi_epi64(fours[4 * i + 1], fours[4 * i + 3]));
    }
}

}  // namespace kernels
