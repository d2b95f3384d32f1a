// Products of small integers with AVX2, in sums of 16 bits.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "vectors_avx2.h"

namespace kernels {

// Rows of products that are in registers, with weights of fewer than eight bits and of eight.
constexpr int ROWS_OF_PRODUCT = 4;
constexpr int ROWS_OF_EIGHT_BITS = 2;

// Neighbours of 16 bits, added to 32.
inline __m256i add_pairs(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

// Products of a row with sixteen columns, whose weights are 0 to 15, or up to 63 where there are at most four runs: exact sums.
// They are added up in 16 bits, two to a column, which do not overflow where `start` makes up for unsigned weights: numbers are
// at most 127 in size, weights 8 away from 8, or 32 from 32. What overflows on the way comes back.
class Dots {
  public:
    void begin(int32_t start) { low_ = high_ = _mm256_set1_epi32(start); }
    void add(const Bytes & weights, const int8_t * four) {
        int32_t run;
        std::memcpy(&run, four, sizeof run);
        low_ = _mm256_add_epi16(low_, _mm256_maddubs_epi16(weights.low, _mm256_set1_epi32(run)));
        high_ = _mm256_add_epi16(high_, _mm256_maddubs_epi16(weights.high, _mm256_set1_epi32(run)));
    }
    __m256i low() const { return add_pairs(low_); }
    __m256i high() const { return add_pairs(high_); }
    Floats floats() const { return {_mm256_cvtepi32_ps(low()), _mm256_cvtepi32_ps(high())}; }

  private:
    __m256i low_;
    __m256i high_;
};

// The same for signed weights of eight bits: 16 times their upper four bits plus 8, and the lower four.
struct EightBits {
    Bytes upper;
    Bytes lower;
};
constexpr int EIGHT_BITS_UP = 8;
inline EightBits eight_bits(Bytes numbers) { return {high_nibbles(exclusive_or(numbers, bytes_everywhere(0x80))), low_nibbles(numbers)}; }

class EightBitDots {
  public:
    void begin(int32_t start) {
        upper_.begin(start);
        lower_.begin(0);
    }
    void add(const EightBits & weights, const int8_t * four) {
        upper_.add(weights.upper, four);
        lower_.add(weights.lower, four);
    }
    Floats floats() const {
        const auto floats = [](__m256i upper, __m256i lower) {
            return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32(upper, 4), lower));
        };
        return {floats(upper_.low(), lower_.low()), floats(upper_.high(), lower_.high())};
    }

  private:
    Dots upper_;
    Dots lower_;
};

// Sums of neighbours.
inline __m256i sums_of_pairs(const int8_t * numbers) {
    return _mm256_maddubs_epi16(_mm256_set1_epi8(1), _mm256_loadu_si256(reinterpret_cast<const __m256i *>(numbers)));
}

// Where products have to start, so that weights may be taken as so many more than they are: `up` times less than the sums of a
// row's numbers; here of the first two of each run of four in the lower 16 bits, of the others in the upper. Of 32 numbers:
inline int32_t start_of(int up, const int8_t * numbers) {
    const __m256i pairs = sums_of_pairs(numbers);
    __m128i sums = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0x4E));
    sums = _mm_add_epi16(sums, _mm_shuffle_epi32(sums, 0xB1));
    return _mm_cvtsi128_si32(_mm_mullo_epi16(sums, _mm_set1_epi16(static_cast<int16_t>(-up))));
}

// Of four rows of 32, in runs of eight numbers a row.
inline void starts_of_four(int up, const int8_t * numbers, int32_t (&starts)[4]) {
    __m256i sums = sums_of_pairs(numbers);
    for (int i = 1; i < 4; i++) {
        sums = _mm256_add_epi16(sums, sums_of_pairs(numbers + 32 * i));
    }
    sums = _mm256_add_epi16(sums, _mm256_srli_epi64(sums, 32));
    sums = _mm256_mullo_epi16(sums, _mm256_set1_epi16(static_cast<int16_t>(-up)));
    alignas(32) int32_t of_row[8];
    _mm256_store_si256(reinterpret_cast<__m256i *>(of_row), sums);
    for (int row = 0; row < 4; row++) {
        starts[row] = of_row[2 * row];
    }
}

// Of sixteen parts of sixteen, whose sums are known.
inline void starts_of_parts(int up, const int8_t * numbers, const int16_t *, int32_t (&starts)[16]) {
    for (int two = 0; two < 8; two++) {
        __m256i sums = sums_of_pairs(numbers + 32 * two);
        sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0x4E));
        sums = _mm256_add_epi16(sums, _mm256_shuffle_epi32(sums, 0xB1));
        sums = _mm256_mullo_epi16(sums, _mm256_set1_epi16(static_cast<int16_t>(-up)));
        starts[2 * two] = _mm256_cvtsi256_si32(sums);
        starts[2 * two + 1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(sums, 1));
    }
}

}  // namespace kernels
