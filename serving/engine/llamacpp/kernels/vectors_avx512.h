// With AVX-512 and VNNI: Intel since Ice Lake, AMD since Zen 4.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace kernels {

constexpr int LANES = 16;  // floats in a vector

constexpr int VECTORS_AT_ONCE = 4;  // of a tile's keys or values, in registers

// Rows of products that are in registers, with weights of fewer than eight bits and of eight.
constexpr int ROWS_OF_PRODUCT = 8;
constexpr int ROWS_OF_EIGHT_BITS = 8;

using Floats = __m512;

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats all(float number) { return _mm512_set1_ps(number); }
inline Floats load(const float * aligned) { return _mm512_load_ps(aligned); }
inline Floats load_any(const float * numbers) { return _mm512_loadu_ps(numbers); }
inline void store(float * aligned, Floats numbers) { _mm512_store_ps(aligned, numbers); }
inline void store_any(float * out, Floats numbers) { _mm512_storeu_ps(out, numbers); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where either is no number
inline Floats plus_product(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
inline Floats minus_product(Floats sum, Floats a, Floats b) { return _mm512_fnmadd_ps(a, b, sum); }
inline Floats nearest(Floats x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT); }
inline Floats times_power_of_two(Floats x, Floats n) { return _mm512_scalef_ps(x, n); }
inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
inline float greatest_of(Floats x) { return _mm512_reduce_max_ps(x); }

inline __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }

inline void store_first(float * out, Floats numbers, int count) { _mm512_mask_storeu_ps(out, first_lanes(count), numbers); }

// Bit i is set where a[i] > b[i].
inline unsigned greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

// x where a > b, else y.
inline Floats where_greater(Floats a, Floats b, Floats x, Floats y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), y, x);
}

inline Floats halves_to_floats(const void * halves) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i *>(halves))); }

// Minus infinity beyond `count`, which is not read.
inline Floats first_halves_to_floats(const void * halves, int count) {
    const __m256i minus_infinity = _mm256_set1_epi16(static_cast<int16_t>(0xFC00));
    return _mm512_cvtph_ps(_mm256_mask_loadu_epi16(minus_infinity, first_lanes(count), halves));
}

// Whether the first `count` of sixteen numbers of 16 bits are all this.
inline bool all_are(int16_t number, const void * numbers, int count) {
    const __m256i sixteen = _mm256_maskz_loadu_epi16(first_lanes(count), numbers);
    return !_mm256_mask_cmpneq_epi16_mask(first_lanes(count), sixteen, _mm256_set1_epi16(number));
}

// 16 vectors of 16 numbers of 32 bits, rows to columns.
inline void transpose(Floats (&rows)[LANES]) {
    Floats t[LANES];
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < LANES; i += 4) {
        rows[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        rows[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
        rows[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        rows[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD);
        rows[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        rows[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xDD);
    }
}

// Weights of sixteen columns, in runs of four numbers a column.
using Bytes = __m512i;

inline Bytes bytes_everywhere(uint8_t byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }
inline Bytes load_bytes(const void * bytes) { return _mm512_loadu_si512(bytes); }
inline Bytes join(__m256i first, __m256i second) { return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1); }
inline void store_bytes(void * out, Bytes bytes) { _mm512_storeu_si512(out, bytes); }
inline Bytes exclusive_or(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
inline Bytes low_nibbles(Bytes bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(0x0F)); }
inline Bytes high_nibbles(Bytes bytes) { return low_nibbles(_mm512_srli_epi16(bytes, 4)); }
inline Floats bytes_as_floats(Bytes bytes) { return _mm512_castsi512_ps(bytes); }

// Runs of eight of eight columns each, as two of four of all sixteen.
inline void take_fours(const uint8_t * left, const uint8_t * right, Bytes (&fours)[2]) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    fours[0] = _mm512_permutex2var_epi32(_mm512_loadu_si512(left), even, _mm512_loadu_si512(right));
    fours[1] = _mm512_permutex2var_epi32(_mm512_loadu_si512(left), odd, _mm512_loadu_si512(right));
}

// Sixteen columns of 32 bytes, `numbers(column)`, as runs of four.
template <typename Numbers> void take_runs(Bytes (&runs)[8], const Numbers & numbers) {
    for (int i = 0; i < 8; i++) {
        runs[i] = join(numbers(i), numbers(i + 8));
    }
    // Two transpositions of 8 x 8 runs side by side.
    __m512i t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_epi32(runs[i], runs[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(runs[i], runs[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        runs[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        runs[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        runs[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        runs[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
    const __m512i high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_permutex2var_epi64(runs[i], low, runs[i + 4]);
        t[i + 4] = _mm512_permutex2var_epi64(runs[i], high, runs[i + 4]);
    }
    for (int i = 0; i < 8; i++) {
        runs[i] = t[i];
    }
}

inline Floats bytes_to_floats(uint64_t first, uint64_t second) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_set_epi64x(static_cast<int64_t>(second), static_cast<int64_t>(first))));
}

inline Floats signed_bytes_to_floats(const int8_t * sixteen) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(sixteen))));
}

// Eight numbers of half precision, and eight from elsewhere.
inline Floats halves_to_floats(const uint16_t * first, const uint16_t * second) {
    const __m128i lower = _mm_loadu_si128(reinterpret_cast<const __m128i *>(first));
    const __m128i upper = _mm_loadu_si128(reinterpret_cast<const __m128i *>(second));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(lower), upper, 1));
}

// Products of a row with sixteen columns, whose weights are 0 to 63: exact sums, from `start` on.
class Dots {
  public:
    void begin(int32_t start) { sums_ = _mm512_set1_epi32(start); }
    void add(const Bytes & weights, const int8_t * four) {
        int32_t run;
        std::memcpy(&run, four, sizeof run);
        sums_ = _mm512_dpbusd_epi32(sums_, weights, _mm512_set1_epi32(run));
    }
    Floats floats() const { return _mm512_cvtepi32_ps(sums_); }

  private:
    __m512i sums_;
};

// The same for signed weights of eight bits: their numbers plus 128.
using EightBits = Bytes;
using EightBitDots = Dots;
constexpr int EIGHT_BITS_UP = 128;
inline EightBits eight_bits(Bytes numbers) { return _mm512_xor_si512(numbers, _mm512_set1_epi8(static_cast<char>(0x80))); }

// Where products have to start, so that weights may be taken as so many more than they are: `up` times less than the sums of a
// row's numbers. Of 32 numbers:
inline int32_t start_of(int up, const int8_t * numbers) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(numbers));
    const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), bytes);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    return -up * _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1)));
}

// Of four rows of 32, in runs of eight numbers a row.
inline void starts_of_four(int up, const int8_t * numbers, int32_t (&starts)[4]) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, _mm512_loadu_si512(numbers));
    sums = _mm512_dpbusd_epi32(sums, ones, _mm512_loadu_si512(numbers + 64));
    const __m256i halves = _mm256_add_epi32(_mm512_castsi512_si256(sums), _mm512_extracti64x4_epi64(sums, 1));
    alignas(32) int32_t of_row[8];
    _mm256_store_si256(reinterpret_cast<__m256i *>(of_row), halves);
    for (int row = 0; row < 4; row++) {
        starts[row] = -up * (of_row[2 * row] + of_row[2 * row + 1]);
    }
}

// Of sixteen parts of sixteen, whose sums are known.
inline void starts_of_parts(int up, const int8_t *, const int16_t * sums, int32_t (&starts)[16]) {
    const __m512i of_parts = _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(sums)));
    _mm512_storeu_si512(starts, _mm512_mullo_epi32(of_parts, _mm512_set1_epi32(-up)));
}

}  // namespace kernels
