// Sixteen channels at a time, in AVX-512 (F, BW, DQ, VL). Elements beyond `count` are neither read nor written.
#pragma once

#include <immintrin.h>

#include "swish_rnn.h"

namespace rt {
namespace {

// Exact: to the precision of float32. Otherwise about 13 bits, which is plenty for what is rounded to the 8 of
// bfloat16.
template <bool Exact>
struct Floats16 {
  __m512 v;

  RT_INLINE Floats16(__m512 v) : v(v) {}
  RT_INLINE explicit Floats16(float x) : v(_mm512_set1_ps(x)) {}
};

template <bool E>
RT_INLINE Floats16<E> operator+(Floats16<E> a, Floats16<E> b) {
  return _mm512_add_ps(a.v, b.v);
}
template <bool E>
RT_INLINE Floats16<E> operator-(Floats16<E> a, Floats16<E> b) {
  return _mm512_sub_ps(a.v, b.v);
}
template <bool E>
RT_INLINE Floats16<E> operator*(Floats16<E> a, Floats16<E> b) {
  return _mm512_mul_ps(a.v, b.v);
}

// The instructions return their second operand when one is NaN.
template <bool E>
RT_INLINE Floats16<E> at_least(Floats16<E> x, Floats16<E> limit) {
  return _mm512_max_ps(limit.v, x.v);
}
template <bool E>
RT_INLINE Floats16<E> at_most(Floats16<E> x, Floats16<E> limit) {
  return _mm512_min_ps(limit.v, x.v);
}
template <bool E>
RT_INLINE Floats16<E> magnitude(Floats16<E> x) {
  return _mm512_abs_ps(x.v);
}
template <bool E>
RT_INLINE Floats16<E> where_negative(Floats16<E> x, Floats16<E> then, Floats16<E> otherwise) {
  return _mm512_mask_mov_ps(otherwise.v, _mm512_movepi32_mask(_mm512_castps_si512(x.v)), then.v);
}

// An estimate of 14 bits and, for all of float32's, one step of Newton's method: half the time of a division.
template <bool E>
RT_INLINE Floats16<E> reciprocal(Floats16<E> x) {
  Floats16<E> estimate = _mm512_rcp14_ps(x.v);
  if (!E) return estimate;
  Floats16<E> error = Floats16<E>(1.0f) - x * estimate;
  return estimate * error + estimate;
}

template <bool E>
RT_INLINE Floats16<E> nearest_integer(Floats16<E> x) {
  return _mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
template <bool E>
RT_INLINE Floats16<E> scale(Floats16<E> p, Floats16<E> n) {
  return _mm512_scalef_ps(p.v, n.v);
}

}  // namespace

template <>
struct IsExact<Floats16<false>> {
  static constexpr bool value = false;
};

namespace {

template <bool Exact>
struct Lanes512 {
  using Value = Floats16<Exact>;
  using Element = float;
  static constexpr int64_t kCount = 16;

  static RT_INLINE void prefetch(const void* from) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1);  // into the second level: the first is full
  }

  static RT_INLINE void prefetch_to_write(const void* to) { __builtin_prefetch(to, 1, 2); }

  static RT_INLINE __mmask16 mask(int64_t count) { return count < kCount ? (1u << count) - 1u : 0xffffu; }
  static RT_INLINE __m256i load16(const void* from, int64_t count) {
    return count < kCount ? _mm256_maskz_loadu_epi16(mask(count), from)
                          : _mm256_loadu_si256(static_cast<const __m256i*>(from));
  }
  static RT_INLINE void store16(void* to, __m256i value, int64_t count) {
    if (count < kCount) {
      _mm256_mask_storeu_epi16(to, mask(count), value);
    } else {
      _mm256_storeu_si256(static_cast<__m256i*>(to), value);
    }
  }

  static RT_INLINE Value load(const float* from, int64_t count) {
    return count < kCount ? _mm512_maskz_loadu_ps(mask(count), from) : _mm512_loadu_ps(from);
  }
  static RT_INLINE Value load(const Half* from, int64_t count) { return _mm512_cvtph_ps(load16(from, count)); }
  static RT_INLINE Value load(const BFloat16* from, int64_t count) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load16(from, count)), 16));
  }

  static RT_INLINE void store(float* to, Value value, int64_t count) {
    if (count < kCount) {
      _mm512_mask_storeu_ps(to, mask(count), value.v);
    } else {
      _mm512_storeu_ps(to, value.v);
    }
  }
  static RT_INLINE void store(Half* to, Value value, int64_t count) {
    store16(to, _mm512_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), count);
  }
  static RT_INLINE void store(BFloat16* to, Value value, int64_t count) {
#if defined(__AVX512BF16__)
    store16(to, bit_cast<__m256i>(_mm512_cvtneps_pbh(value.v)), count);
#else
    // Half a unit, less one where the last kept bit is 0: ties go to the even neighbour.
    __m512i bits = _mm512_castps_si512(value.v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    __mmask16 nan = _mm512_cmp_ps_mask(value.v, value.v, _CMP_UNORD_Q);
    rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    store16(to, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)), count);
#endif
  }
};

}  // namespace
}  // namespace rt
