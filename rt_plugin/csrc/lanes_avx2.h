// Eight channels at a time, in AVX2 with FMA and F16C. Elements beyond `count` are neither read nor written.
#pragma once

#include <immintrin.h>

#include "swish_rnn.h"

namespace rt {
namespace {

struct Floats8 {
  __m256 v;

  RT_INLINE Floats8(__m256 v) : v(v) {}
  RT_INLINE explicit Floats8(float x) : v(_mm256_set1_ps(x)) {}
};

RT_INLINE Floats8 operator+(Floats8 a, Floats8 b) { return _mm256_add_ps(a.v, b.v); }
RT_INLINE Floats8 operator-(Floats8 a, Floats8 b) { return _mm256_sub_ps(a.v, b.v); }
RT_INLINE Floats8 operator*(Floats8 a, Floats8 b) { return _mm256_mul_ps(a.v, b.v); }

// The instructions return their second operand when one is NaN.
RT_INLINE Floats8 at_least(Floats8 x, Floats8 limit) { return _mm256_max_ps(limit.v, x.v); }
RT_INLINE Floats8 at_most(Floats8 x, Floats8 limit) { return _mm256_min_ps(limit.v, x.v); }
RT_INLINE Floats8 magnitude(Floats8 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v); }
RT_INLINE Floats8 where_negative(Floats8 x, Floats8 then, Floats8 otherwise) {
  return _mm256_blendv_ps(otherwise.v, then.v, x.v);  // by the sign bit
}
RT_INLINE Floats8 reciprocal(Floats8 x) { return _mm256_div_ps(_mm256_set1_ps(1.0f), x.v); }

RT_INLINE Floats8 nearest_integer(Floats8 x) {
  return _mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
RT_INLINE Floats8 scale(Floats8 p, Floats8 n) {
  __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return _mm256_mul_ps(p.v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

struct Lanes256 {
  using Value = Floats8;
  using Element = float;
  static constexpr int64_t kCount = 8;

  static RT_INLINE void prefetch_to_write(const void* to) { __builtin_prefetch(to, 1, 2); }
  static RT_INLINE void prefetch(const void* from) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1);  // into the second level: the first is full
  }

  // Partial vectors go through a small buffer.
  template <typename T>
  static RT_INLINE Value load(const T* from, int64_t count) {
    if (count >= kCount) return load_all(from);
    T buffer[kCount] = {};
    memcpy(buffer, from, count * sizeof(T));
    return load_all(buffer);
  }
  template <typename T>
  static RT_INLINE void store(T* to, Value value, int64_t count) {
    if (count >= kCount) return store_all(to, value);
    T buffer[kCount];
    store_all(buffer, value);
    memcpy(to, buffer, count * sizeof(T));
  }

 private:
  static RT_INLINE __m128i load16(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
  static RT_INLINE void store16(void* to, __m128i value) { _mm_storeu_si128(static_cast<__m128i*>(to), value); }

  static RT_INLINE Value load_all(const float* from) { return _mm256_loadu_ps(from); }
  static RT_INLINE Value load_all(const Half* from) { return _mm256_cvtph_ps(load16(from)); }
  static RT_INLINE Value load_all(const BFloat16* from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(from)), 16));
  }

  static RT_INLINE void store_all(float* to, Value value) { _mm256_storeu_ps(to, value.v); }
  static RT_INLINE void store_all(Half* to, Value value) {
    store16(to, _mm256_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static RT_INLINE void store_all(BFloat16* to, Value value) {
    // Half a unit, less one where the last kept bit is 0: ties go to the even neighbour.
    __m256i bits = _mm256_castps_si256(value.v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value.v, value.v, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan), 16);
    store16(to, _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1)));
  }
};

}  // namespace
}  // namespace rt
