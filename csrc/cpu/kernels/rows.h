// Loops over one row.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/engine.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// A row without elements may have no address.
template <class T>
void zero_row(T* row, int64_t n) {
  if (n > 0) std::memset(row, 0, n * sizeof(T));
}

// dst[i] = src[i], n elements, whose types may differ.
template <class V, class S, class T>
void store_row(const S* src, int64_t n, T* dst) {
  int64_t j = 0;
  for (; j + V::kLanes <= n; j += V::kLanes) V::load(src + j).store(dst + j);
  if (j < n)
    V::load_first(src + j, static_cast<int>(n - j)).store_first(dst + j, static_cast<int>(n - j));
}

// dst[i] = factor * src[i] as T, n elements.
template <class V, class T>
void store_scaled_row(const typename V::Scalar* src, int64_t n, typename V::Scalar factor, T* dst) {
  const V f = V::set1(factor);
  int64_t j = 0;
  for (; j + V::kLanes <= n; j += V::kLanes) (V::load(src + j) * f).store(dst + j);
  if (j < n)
    (V::load_first(src + j, static_cast<int>(n - j)) * f)
        .store_first(dst + j, static_cast<int>(n - j));
}

template <class V>
void scale_row(typename V::Scalar* row, int64_t n, typename V::Scalar factor) {
  const V f = V::set1(factor);
  for (int64_t x = 0; x < n; x += V::kLanes) (V::load(row + x) * f).store(row + x);
}

// Vectors that are summed in one chain before they join a total: equal terms round in one
// direction, and a chain of hundreds of them is off by dozens of ulp.
constexpr int64_t kSumChain = 8;

template <class V>
typename V::Scalar sum_row(const typename V::Scalar* row, int64_t n) {
  V total = V::zero();
  for (int64_t begin = 0; begin < n; begin += kSumChain * V::kLanes) {
    const int64_t end = min_of(n, begin + kSumChain * V::kLanes);
    V sum = V::zero();
    int64_t x = begin;
    for (; x + V::kLanes <= end; x += V::kLanes) sum = sum + V::load(row + x);
    if (x < end) sum = sum + V::load_first(row + x, static_cast<int>(end - x));
    total = total + sum;
  }
  return reduce_add(total);
}

template <class V, class T>
typename V::Scalar dot_rows(const T* a, const T* b, int64_t n) {
  V sum = V::zero();
  int64_t x = 0;
  for (; x + V::kLanes <= n; x += V::kLanes) sum = fmadd(V::load(a + x), V::load(b + x), sum);
  if (x < n) {
    const int rest = static_cast<int>(n - x);
    sum = fmadd(V::load_first(a + x, rest), V::load_first(b + x, rest), sum);
  }
  return reduce_add(sum);
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
