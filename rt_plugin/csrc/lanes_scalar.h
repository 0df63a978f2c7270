// One channel at a time, in plain C++: for every machine. Compilers turn the loop over the channels into vector code.
#pragma once

#include "swish_rnn.h"

namespace rt {
namespace {

template <typename A>
struct ScalarLanes {
  using Value = A;
  using Element = A;
  static constexpr int64_t kCount = 1;

  static RT_INLINE void prefetch_to_write(const void*) {}
  static RT_INLINE void prefetch(const void*) {}  // machines do well at plain loops by themselves

  template <typename T>
  static RT_INLINE A load(const T* from, int64_t) {
    return widen(*from);
  }
  template <typename T>
  static RT_INLINE void store(T* to, A value, int64_t) {
    *to = narrow<T>(value);
  }
};

}  // namespace
}  // namespace rt
