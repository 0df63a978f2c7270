// The arithmetic of one position of one channel, forward and backward, for host and device.
//
// Source: Lei, Tian, Bastings, Parikh, "Simple Recurrence Improves Masked Language Models", arXiv 2205.11588; the
// definition is rt_plugin/reference.py. Everything here is branch-free, so that a plain loop around it becomes vector
// code, and written for any A: float, double, or one of the vectors of floats in lanes_*.h. T is the type that tensors
// are stored in.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define RT_INLINE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define RT_INLINE __forceinline
#else
// Forced, because every instruction set compiles its own copy and none may be shared by the linker.
#define RT_INLINE inline __attribute__((always_inline))
#endif

namespace rt {

enum class DType { float32, float64, float16, bfloat16 };
enum class Gate { gelu, sigmoid, silu };

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct Calculation {
  using type = float;
};
template <>
struct Calculation<double> {
  using type = double;
};
template <typename T>
using CalculationType = typename Calculation<T>::type;

// Whether functions of A are to be as exact as float32 is.
template <typename A>
struct IsExact {
  static constexpr bool value = true;
};

template <typename To, typename From>
RT_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- storage types: exact on the way in, rounded to nearest even on the way out

RT_INLINE float widen(float x) { return x; }
RT_INLINE double widen(double x) { return x; }
RT_INLINE float widen(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

RT_INLINE float widen(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(bit_cast<__half>(x));
#else
  // Moving the mantissa into place leaves an exponent that is 112 too small; a product with a power of two mends it
  // exactly, for subnormal numbers too. Infinity and NaN keep their mantissa and get the full exponent.
  uint32_t magnitude = uint32_t(x.bits & 0x7fffu) << 13;
  uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  uint32_t special = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  uint32_t number = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  return bit_cast<float>(number | special | sign);
#endif
}

template <typename T>
RT_INLINE T narrow(CalculationType<T> x);

template <>
RT_INLINE float narrow<float>(float x) {
  return x;
}
template <>
RT_INLINE double narrow<double>(double x) {
  return x;
}

template <>
RT_INLINE BFloat16 narrow<BFloat16>(float x) {
#if defined(__CUDA_ARCH__)
  return bit_cast<BFloat16>(__float2bfloat16_rn(x));
#else
  uint32_t bits = bit_cast<uint32_t>(x);
  uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {uint16_t(x == x ? rounded : 0x7fc0u)};
#endif
}

template <>
RT_INLINE Half narrow<Half>(float x) {
#if defined(__CUDA_ARCH__)
  return bit_cast<Half>(__float2half_rn(x));
#else
  uint32_t bits = bit_cast<uint32_t>(x);
  uint32_t sign = (bits >> 16) & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  // Normal numbers: round away 13 bits of mantissa, then move the exponent by 112.
  uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // Below 2^-14: adding 0.5 leaves multiples of 2^-24, the smallest half, in the last bits of the mantissa.
  uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  uint32_t number = magnitude < 0x47800000u ? finite : 0x7c00u;  // 65536 and above
  return {uint16_t((magnitude > 0x7f800000u ? 0x7e00u : number) | sign)};
#endif
}

// ---- primitives: what float has here, the vector types in lanes_*.h have under the same names

// NaN stays NaN in both.
RT_INLINE float at_least(float x, float limit) { return x < limit ? limit : x; }
RT_INLINE float at_most(float x, float limit) { return x > limit ? limit : x; }
RT_INLINE float magnitude(float x) { return fabsf(x); }
RT_INLINE float where_negative(float x, float then, float otherwise) { return x < 0.0f ? then : otherwise; }

// On a device: one instruction, wrong by at most one unit in the last place; results below 2^-126 become 0.
RT_INLINE float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return 1.0f / x;
#endif
}
RT_INLINE double reciprocal(double x) { return 1.0 / x; }

constexpr float kRoundToInteger = 12582912.0f;  // 1.5 * 2^23: the last bit of a sum with it counts ones

// For |x| < 2^22.
RT_INLINE float nearest_integer(float x) { return (x + kRoundToInteger) - kRoundToInteger; }

// p * 2^n for a whole n in [-126, 127].
RT_INLINE float scale(float p, float n) {
  uint32_t exponent = bit_cast<uint32_t>(n + kRoundToInteger) + (127u - 0x4b400000u);
  return p * bit_cast<float>(exponent << 23);
}

// ---- functions of one number

// 2^t for t in [-126, 127], with a relative error of 1e-7 (1e-4 where A is not exact); NaN stays NaN.
template <typename A>
RT_INLINE A power_of_two(A t) {
  A n = nearest_integer(t);
  A r = t - n;
  if (!IsExact<A>::value) {
    A p = A(5.50089314e-2f);
    p = p * r + A(2.42210962e-1f);
    p = p * r + A(6.93282927e-1f);
    return scale(p * r + A(1.0f), n);
  }
  A p = A(1.32647272e-3f);  // 2^r on [-0.5, 0.5]: minimax of the relative error, 9.1e-8, exact at 0
  p = p * r + A(9.67151268e-3f);
  p = p * r + A(5.55073374e-2f);
  p = p * r + A(2.40222421e-1f);
  p = p * r + A(6.93146978e-1f);
  p = p * r + A(1.0f);
  return scale(p, n);
}
#if defined(__CUDA_ARCH__)
RT_INLINE float power_of_two(float t) {  // one instruction, relative error 2^-22
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(t));
  return result;
}
#endif
constexpr float kLog2E = 1.44269504f;

// Keep an argument in the range of `power_of_two`. A device's instruction has no need of it: beyond its range it gives
// infinity or 0, which the formulas below make the right limit of.
template <typename A>
RT_INLINE A capped(A t, float limit) {
  return at_most(t, A(limit));
}
template <typename A>
RT_INLINE A floored(A t, float limit) {
  return at_least(t, A(limit));
}
#if defined(__CUDA_ARCH__)
RT_INLINE float capped(float t, float) { return t; }
RT_INLINE float floored(float t, float) { return t; }
#endif

// 1 / (1 + 2^t)
template <typename A>
RT_INLINE A sigmoid_of_power(A t) {
  return reciprocal(A(1.0f) + power_of_two(capped(floored(t, -126.0f), 127.0f)));
}

template <typename A>
RT_INLINE A sigmoid(A x) {
  return sigmoid_of_power(x * A(-kLog2E));
}
RT_INLINE double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// The distribution function and the density of the standard normal distribution.
template <typename A>
struct Normal {
  A distribution, density;
};

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: |error of erf| <= 1.5e-7 (7.1.25: 2.5e-5, where A
// is not exact; the half of the published coefficients, because a tail is half of erfc). One exponential serves both
// results. Beyond 13 both tails are 0 in float32, at 13 they are below 1e-37.
template <typename A>
RT_INLINE Normal<A> standard_normal(A x) {
  A m = capped(magnitude(x), 13.0f);
  A e = power_of_two(m * m * A(-0.5f * kLog2E));
  A t = reciprocal(A(1.0f) + A(IsExact<A>::value ? 0.231641888f : 0.332672447f) * m);  // 0.3275911 or 0.47047 / sqrt(2)
  A p = A(0.3739278f);
  if (IsExact<A>::value) {
    p = A(0.530702715f);
    p = p * t + A(-0.726576014f);
    p = p * t + A(0.710706871f);
    p = p * t + A(-0.142248368f);
    p = p * t + A(0.127414796f);
  } else {
    p = p * t + A(-0.0479399f);
    p = p * t + A(0.1740121f);
  }
  A tail = p * t * e;
  return {where_negative(x, tail, A(1.0f) - tail), A(0.398942280f) * e};
}
RT_INLINE Normal<double> standard_normal(double x) {
  return {0.5 * (1.0 + erf(x * 0.70710678118654752440)), 0.39894228040143267794 * exp(-0.5 * x * x)};
}

template <typename A>
struct GateValue {
  A value, slope;
};

// g(x) and g'(x); the slope costs nothing where the caller does not use it.
template <Gate G, typename A>
RT_INLINE GateValue<A> gate(A x) {
  if (G == Gate::gelu) {
    Normal<A> n = standard_normal(x);
    return {x * n.distribution, n.distribution + x * n.density};
  }
  A s = sigmoid(x);
  A s_slope = s * (A(1.0f) - s);
  if (G == Gate::sigmoid) return {s, s_slope};
  return {x * s, s + x * s_slope};
}

// ---- one position

template <typename A>
struct ChannelParameters {
  A alpha, beta, c_bias, gate_bias;
};

// The same, and alpha and beta in the unit of `sigmoid_of_power`: a product less in every step, for two more numbers.
struct FoldedParameters : ChannelParameters<float> {
  float alpha_of_power, beta_of_power;

  FoldedParameters() = default;
  RT_INLINE explicit FoldedParameters(const ChannelParameters<float>& p)
      : ChannelParameters<float>(p), alpha_of_power(p.alpha * -kLog2E), beta_of_power(p.beta * -kLog2E) {}
};

// sigmoid(alpha z + beta)
template <typename A>
RT_INLINE A swish_sigmoid(A z, const ChannelParameters<A>& p) {
  return sigmoid(p.alpha * z + p.beta);
}
RT_INLINE float swish_sigmoid(float z, const FoldedParameters& p) {
  return sigmoid_of_power(p.alpha_of_power * z + p.beta_of_power);
}

// c[i] = Swish(c[i-k] - x1[i]) + x1[i]. Parameters: ChannelParameters<A> or FoldedParameters.
template <typename A, typename Parameters>
RT_INLINE A next_state(A x1, A previous, const Parameters& p) {
  A z = previous - x1;
  return z * swish_sigmoid(z, p) + x1;
}

// h[i] = (c[i] + b_c) * g(x2[i] + b_g)
template <Gate G, typename A>
RT_INLINE A gated_output(A c, A x2, const ChannelParameters<A>& p) {
  return (c + p.c_bias) * gate<G>(x2 + p.gate_bias).value;
}

// What one position adds to the gradients. The gradient of gate_bias is that of x2.
template <typename A>
struct StepGradients {
  A x1, x2, previous, alpha, beta, c_bias;
};

// The derivative of `next_state` and `gated_output`. `previous` is c[i-k], `carry` the gradient of c[i] that comes from
// c[i+k]. c[i] is calculated again: that is one multiply-add, a load would be a sixth of the traffic.
template <Gate G, typename A, typename Parameters>
RT_INLINE StepGradients<A> step_backward(A dh, A x1, A x2, A previous, A carry, const Parameters& p) {
  A z = previous - x1;
  A s = swish_sigmoid(z, p);
  A zs = z * s;
  A c = zs + x1;
  A swish_slope = zs * (A(1.0f) - s);  // z * sigmoid'

  GateValue<A> g = gate<G>(x2 + p.gate_bias);
  A d_c_bias = dh * g.value;
  A dc = d_c_bias + carry;
  A d_previous = dc * (s + p.alpha * swish_slope);
  A d_beta = dc * swish_slope;
  return {dc - d_previous, dh * (c + p.c_bias) * g.slope, d_previous, d_beta * z, d_beta, d_c_bias};
}

// ---- what a kernel is asked to do

// One of alpha, beta, c_bias, gate_bias: (width,), in float32 or the type of x12.
struct Parameter {
  const void* data;
  DType dtype;
};
struct ParameterGradient {
  void* data;
  DType dtype;
};
constexpr int kParameters = 4;

// A (length, batch, channels) tensor whose channels are neighbours in memory; strides in elements.
struct Strided {
  const void* data;
  int64_t position_stride, row_stride;
};

struct Problem {
  int64_t length, batch, width, step_size;  // L, B, d', k
  DType dtype;
  Gate gate;
  bool reverse;
  Strided x12;
  Parameter parameters[kParameters];
};

RT_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
RT_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
RT_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace rt
