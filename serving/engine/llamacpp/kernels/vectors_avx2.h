// With AVX2, FMA and F16C: Intel since Haswell, AMD since Zen.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace kernels {

constexpr int LANES = 16;  // floats in a vector

constexpr int VECTORS_AT_ONCE = 1;  // of a tile's keys or values, in registers

struct Floats {
    __m256 low;
    __m256 high;
};

inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats all(float number) { return {_mm256_set1_ps(number), _mm256_set1_ps(number)}; }
inline Floats load(const float * aligned) { return {_mm256_load_ps(aligned), _mm256_load_ps(aligned + 8)}; }
inline Floats load_any(const float * numbers) { return {_mm256_loadu_ps(numbers), _mm256_loadu_ps(numbers + 8)}; }
inline void store(float * aligned, Floats numbers) {
    _mm256_store_ps(aligned, numbers.low);
    _mm256_store_ps(aligned + 8, numbers.high);
}
inline void store_any(float * out, Floats numbers) {
    _mm256_storeu_ps(out, numbers.low);
    _mm256_storeu_ps(out + 8, numbers.high);
}
inline Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats sub(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats mul(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }  // b where either is no number
inline Floats plus_product(Floats sum, Floats a, Floats b) {
    return {_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
}
inline Floats minus_product(Floats sum, Floats a, Floats b) {
    return {_mm256_fnmadd_ps(a.low, b.low, sum.low), _mm256_fnmadd_ps(a.high, b.high, sum.high)};
}
inline Floats nearest(Floats x) {
    constexpr int TO_NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.low, TO_NEAREST), _mm256_round_ps(x.high, TO_NEAREST)};
}

// n from -252 to 252: in two steps, of which only the second may leave the normal numbers, and rounds.
inline __m256 times_power_of_two(__m256 x, __m256 n) {
    const auto power = [](__m256i exponent) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
    };
    const __m256i exponent = _mm256_cvtps_epi32(n);
    const __m256i half = _mm256_srai_epi32(exponent, 1);
    return _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(exponent, half)));
}
inline Floats times_power_of_two(Floats x, Floats n) {
    return {times_power_of_two(x.low, n.low), times_power_of_two(x.high, n.high)};
}

inline float sum_of(Floats x) {
    const __m256 eight = _mm256_add_ps(x.low, x.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float greatest_of(Floats x) {
    const __m256 eight = _mm256_max_ps(x.low, x.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline void store_first(float * out, Floats numbers, int count) {
    if (count == LANES) {
        store_any(out, numbers);
        return;
    }
    alignas(32) float sixteen[LANES];
    store(sixteen, numbers);
    std::memcpy(out, sixteen, count * sizeof(float));
}

// Bit i is set where a[i] > b[i].
inline unsigned greater(Floats a, Floats b) {
    const auto low = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ)));
    return low | static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ))) << 8;
}

// x where a > b, else y.
inline Floats where_greater(Floats a, Floats b, Floats x, Floats y) {
    return {_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_GT_OQ)),
            _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_GT_OQ))};
}

inline __m256 eight_halves_to_floats(const void * halves) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i *>(halves))); }

// Eight numbers of half precision, and eight from elsewhere.
inline Floats halves_to_floats(const uint16_t * first, const uint16_t * second) {
    return {eight_halves_to_floats(first), eight_halves_to_floats(second)};
}
inline Floats halves_to_floats(const void * halves) {
    return {eight_halves_to_floats(halves), eight_halves_to_floats(static_cast<const char *>(halves) + 16)};
}

// Minus infinity beyond `count`, which is not read.
inline Floats first_halves_to_floats(const void * halves, int count) {
    if (count == LANES) {
        return halves_to_floats(halves);
    }
    uint16_t sixteen[LANES];
    std::fill_n(sixteen, LANES, static_cast<uint16_t>(0xFC00));
    std::memcpy(sixteen, halves, count * sizeof(uint16_t));
    return halves_to_floats(sixteen);
}

// Whether the first `count` of sixteen numbers of 16 bits are all this.
inline bool all_are(int16_t number, const void * numbers, int count) {
    if (count == LANES) {
        const __m256i sixteen = _mm256_loadu_si256(static_cast<const __m256i *>(numbers));
        return _mm256_movemask_epi8(_mm256_cmpeq_epi16(sixteen, _mm256_set1_epi16(number))) == -1;
    }
    for (int i = 0; i < count; i++) {
        if (std::memcmp(static_cast<const char *>(numbers) + 2 * i, &number, sizeof number) != 0) {
            return false;
        }
    }
    return true;
}

// Eight vectors of eight numbers of 32 bits, rows to columns.
inline void transpose(__m256i (&rows)[8]) {
    __m256i t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        rows[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        rows[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        rows[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        rows[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(rows[i], rows[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(rows[i], rows[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) {
        rows[i] = t[i];
    }
}

// 16 vectors of 16 numbers of 32 bits, rows to columns.
inline void transpose(Floats (&rows)[LANES]) {
    __m256i quarters[2][2][8];
    for (int i = 0; i < LANES; i++) {
        quarters[i / 8][0][i % 8] = _mm256_castps_si256(rows[i].low);
        quarters[i / 8][1][i % 8] = _mm256_castps_si256(rows[i].high);
    }
    for (auto & half : quarters) {
        for (auto & quarter : half) {
            transpose(quarter);
        }
    }
    for (int i = 0; i < LANES; i++) {
        rows[i] = {_mm256_castsi256_ps(quarters[0][i / 8][i % 8]), _mm256_castsi256_ps(quarters[1][i / 8][i % 8])};
    }
}

// Weights of sixteen columns, in runs of four numbers a column.
struct Bytes {
    __m256i low;
    __m256i high;
};

inline Bytes bytes_everywhere(uint8_t byte) {
    const __m256i bytes = _mm256_set1_epi8(static_cast<char>(byte));
    return {bytes, bytes};
}
inline __m256i load_32_bytes(const void * bytes) { return _mm256_loadu_si256(static_cast<const __m256i *>(bytes)); }
inline Bytes load_bytes(const void * bytes) { return {load_32_bytes(bytes), load_32_bytes(static_cast<const char *>(bytes) + 32)}; }
inline Bytes join(__m256i first, __m256i second) { return {first, second}; }
inline void store_bytes(void * out, Bytes bytes) {
    _mm256_storeu_si256(static_cast<__m256i *>(out), bytes.low);
    _mm256_storeu_si256(static_cast<__m256i *>(out) + 1, bytes.high);
}
inline Bytes exclusive_or(Bytes a, Bytes b) { return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)}; }
inline __m256i low_nibbles(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(0x0F)); }
inline __m256i high_nibbles(__m256i bytes) { return low_nibbles(_mm256_srli_epi16(bytes, 4)); }
inline Bytes low_nibbles(Bytes bytes) { return {low_nibbles(bytes.low), low_nibbles(bytes.high)}; }
inline Bytes high_nibbles(Bytes bytes) { return {high_nibbles(bytes.low), high_nibbles(bytes.high)}; }
inline Floats bytes_as_floats(Bytes bytes) { return {_mm256_castsi256_ps(bytes.low), _mm256_castsi256_ps(bytes.high)}; }

// Runs of eight of eight columns, as two of four.
inline void take_fours(const uint8_t * runs, __m256i & first, __m256i & second) {
    const __m256 left = _mm256_loadu_ps(reinterpret_cast<const float *>(runs));
    const __m256 right = _mm256_loadu_ps(reinterpret_cast<const float *>(runs + 32));
    const auto in_order = [](__m256 fours) { return _mm256_permute4x64_epi64(_mm256_castps_si256(fours), 0xD8); };
    first = in_order(_mm256_shuffle_ps(left, right, 0x88));
    second = in_order(_mm256_shuffle_ps(left, right, 0xDD));
}

// Runs of eight of eight columns each, as two of four of all sixteen.
inline void take_fours(const uint8_t * left, const uint8_t * right, Bytes (&fours)[2]) {
    take_fours(left, fours[0].low, fours[1].low);
    take_fours(right, fours[0].high, fours[1].high);
}

// Sixteen columns of 32 bytes, `numbers(column)`, as runs of four.
template <typename Numbers> void take_runs(Bytes (&runs)[8], const Numbers & numbers) {
    __m256i left[8];
    __m256i right[8];
    for (int i = 0; i < 8; i++) {
        left[i] = numbers(i);
        right[i] = numbers(i + 8);
    }
    transpose(left);
    transpose(right);
    for (int i = 0; i < 8; i++) {
        runs[i] = {left[i], right[i]};
    }
}

inline __m256 bytes_to_floats(uint64_t eight) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(eight))));
}
inline Floats bytes_to_floats(uint64_t first, uint64_t second) { return {bytes_to_floats(first), bytes_to_floats(second)}; }

inline Floats signed_bytes_to_floats(const int8_t * sixteen) {
    const auto floats = [](const int8_t * eight) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(eight))));
    };
    return {floats(sixteen), floats(sixteen + 8)};
}

}  // namespace kernels
