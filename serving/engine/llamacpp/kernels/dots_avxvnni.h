// Products of small integers with AVX-VNNI: Intel's processors for laptops and desktops since Alder Lake.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "vectors_avx2.h"

namespace kernels {

// Rows of products that are in registers, with weights of fewer than eight bits and of eight.
constexpr int ROWS_OF_PRODUCT = 4;
constexpr int ROWS_OF_EIGHT_BITS = 4;

// Products of a row with sixteen columns, whose weights are 0 to 63: exact sums, from `start` on.
class Dots {
  public:
    void begin(int32_t start) { low_ = high_ = _mm256_set1_epi32(start); }
    void add(const Bytes & weights, const int8_t * four) {
        int32_t run;
        std::memcpy(&run, four, sizeof run);
        low_ = _mm256_dpbusd_avx_epi32(low_, weights.low, _mm256_set1_epi32(run));
        high_ = _mm256_dpbusd_avx_epi32(high_, weights.high, _mm256_set1_epi32(run));
    }
    Floats floats() const { return {_mm256_cvtepi32_ps(low_), _mm256_cvtepi32_ps(high_)}; }

  private:
    __m256i low_;
    __m256i high_;
};

// The same for signed weights of eight bits: their numbers plus 128.
using EightBits = Bytes;
using EightBitDots = Dots;
constexpr int EIGHT_BITS_UP = 128;
inline EightBits eight_bits(Bytes numbers) { return exclusive_or(numbers, bytes_everywhere(0x80)); }

// Sums of runs of four.
inline __m256i sums_of_runs(__m256i sums, const int8_t * numbers) {
    return _mm256_dpbusd_avx_epi32(sums, _mm256_set1_epi8(1), load_32_bytes(numbers));
}

// Where products have to start, so that weights may be taken as so many more than they are: `up` times less than the sums of a
// row's numbers. Of 32 numbers:
inline int32_t start_of(int up, const int8_t * numbers) {
    const __m256i sums = sums_of_runs(_mm256_setzero_si256(), numbers);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return -up * _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}

// Of four rows of 32, in runs of eight numbers a row.
inline void starts_of_four(int up, const int8_t * numbers, int32_t (&starts)[4]) {
    __m256i sums = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        sums = sums_of_runs(sums, numbers + 32 * i);
    }
    alignas(32) int32_t of_row[8];
    _mm256_store_si256(reinterpret_cast<__m256i *>(of_row), sums);
    for (int row = 0; row < 4; row++) {
        starts[row] = -up * (of_row[2 * row] + of_row[2 * row + 1]);
    }
}

// Of sixteen parts of sixteen, whose sums are known.
inline void starts_of_parts(int up, const int8_t *, const int16_t * sums, int32_t (&starts)[16]) {
    for (int part = 0; part < 16; part++) {
        starts[part] = -up * sums[part];
    }
}

}  // namespace kernels
