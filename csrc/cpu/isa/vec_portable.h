// Vectors of 128 bits through the compiler's vector extension: right on every architecture, the
// floor in speed.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernels/half.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// One body for float and double: `Raw` is the vector, `Lanes` the integer vector that its
// comparisons give.
template <class S, class I>
struct PortableVec {
  using Scalar = S;
  static constexpr int kLanes = 16 / sizeof(S);
  typedef S Raw __attribute__((vector_size(16)));
  typedef I Lanes __attribute__((vector_size(16)));
  Raw x;

  static PortableVec zero() { return {Raw{}}; }
  static PortableVec set1(S s) { return {Raw{} + s}; }
  static PortableVec load(const S* p) {
    PortableVec v;
    std::memcpy(&v.x, p, sizeof(v.x));
    return v;
  }
  static PortableVec load_first(const S* p, int n) {
    PortableVec v = zero();
    for (int i = 0; i < n; ++i) v.x[i] = p[i];
    return v;
  }
  void store(S* p) const { std::memcpy(p, &x, sizeof(x)); }
  void store_first(S* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = x[i];
  }

  // Half-precision types go number by number.
  template <class Half>
  static PortableVec load(const Half* p) {
    return load_first(p, kLanes);
  }
  template <class Half>
  static PortableVec load_first(const Half* p, int n) {
    PortableVec v = zero();
    for (int i = 0; i < n; ++i) v.x[i] = to_float(p[i]);
    return v;
  }
  void store(BFloat16* p) const { store_first(p, kLanes); }
  void store(Float16* p) const { store_first(p, kLanes); }
  void store_first(BFloat16* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = to_bfloat16(x[i]);
  }
  void store_first(Float16* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = to_float16(x[i]);
  }
};

using VecF = PortableVec<float, int32_t>;
using VecD = PortableVec<double, int64_t>;

template <class S, class I>
PortableVec<S, I> operator+(PortableVec<S, I> a, PortableVec<S, I> b) {
  return {a.x + b.x};
}
template <class S, class I>
PortableVec<S, I> operator-(PortableVec<S, I> a, PortableVec<S, I> b) {
  return {a.x - b.x};
}
template <class S, class I>
PortableVec<S, I> operator*(PortableVec<S, I> a, PortableVec<S, I> b) {
  return {a.x * b.x};
}
template <class S, class I>
PortableVec<S, I> operator/(PortableVec<S, I> a, PortableVec<S, I> b) {
  return {a.x / b.x};
}
// Fused only where the target has it: the baseline of x86-64 has not, aarch64 has.
template <class S, class I>
PortableVec<S, I> fmadd(PortableVec<S, I> a, PortableVec<S, I> b, PortableVec<S, I> c) {
  return {a.x * b.x + c.x};
}
template <class S, class I>
PortableVec<S, I> fmsub(PortableVec<S, I> a, PortableVec<S, I> b, PortableVec<S, I> c) {
  return {a.x * b.x - c.x};
}
// b where either is NaN: the newer operand goes second, so that a NaN score is not lost against a
// bound.
template <class S, class I>
PortableVec<S, I> max(PortableVec<S, I> a, PortableVec<S, I> b) {
  return {a.x > b.x ? a.x : b.x};
}
// then where a == b, otherwise.
template <class S, class I>
PortableVec<S, I> select_equal(PortableVec<S, I> a, PortableVec<S, I> b, PortableVec<S, I> then,
                               PortableVec<S, I> otherwise) {
  return {a.x == b.x ? then.x : otherwise.x};
}
// then where a < b, otherwise (also where either is NaN).
template <class S, class I>
PortableVec<S, I> select_less(PortableVec<S, I> a, PortableVec<S, I> b, PortableVec<S, I> then,
                              PortableVec<S, I> otherwise) {
  return {a.x < b.x ? then.x : otherwise.x};
}
template <class S, class I>
PortableVec<S, I> keep_first(PortableVec<S, I> a, int n, PortableVec<S, I> otherwise) {
  for (int i = n; i < a.kLanes; ++i) a.x[i] = otherwise.x[i];
  return a;
}
// 0 where a is NaN or Inf: a - a is 0 only for finite numbers.
template <class S, class I>
PortableVec<S, I> zero_non_finite(PortableVec<S, I> a) {
  typename PortableVec<S, I>::Raw zero{};
  return {(a.x - a.x) == zero ? a.x : zero};
}
template <class S, class I>
S reduce_max(PortableVec<S, I> a) {
  S m = a.x[0];
  for (int i = 1; i < a.kLanes; ++i) m = m > a.x[i] ? m : a.x[i];
  return m;
}
template <class S, class I>
S reduce_add(PortableVec<S, I> a) {
  S s = a.x[0];
  for (int i = 1; i < a.kLanes; ++i) s += a.x[i];
  return s;
}
// Adding and subtracting 1.5 * 2^(mantissa bits) rounds |a| < 2^22 (float) to the nearest integer.
template <class S, class I>
PortableVec<S, I> round_nearest(PortableVec<S, I> a) {
  const S magic = sizeof(S) == 4 ? S(12582912.0) : S(6755399441055744.0);
  const auto m = PortableVec<S, I>::set1(magic);
  return (a + m) - m;
}
// a * 2^n for normal results, 0 below them.
template <class S, class I>
PortableVec<S, I> scale_by_power(PortableVec<S, I> a, PortableVec<S, I> n) {
  constexpr int mantissa = sizeof(S) == 4 ? 23 : 52;
  constexpr I bias = sizeof(S) == 4 ? 127 : 1023;
  using V = PortableVec<S, I>;
  typename V::Lanes bits = (__builtin_convertvector(n.x, typename V::Lanes) + bias) << mantissa;
  typename V::Raw power;
  std::memcpy(&power, &bits, sizeof(power));
  const typename V::Raw zero{};
  return {n.x < zero + S(1 - bias) ? zero : a.x * power};
}

inline void transpose(VecF rows[4]) {
  float from[4][4], to[4][4];
  std::memcpy(from, rows, sizeof(from));
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) to[i][j] = from[j][i];
  std::memcpy(rows, to, sizeof(to));
}

// 16 registers: rows of a tile of n vectors, so that accumulators, n operands and one broadcast
// fit.
constexpr int kMaxTileVectors = 3;
// Longest sum that a tile forms in one go: without fused multiply-add each step rounds twice, and
// short chains keep the error at that of the other instruction sets.
constexpr int64_t kMaxChain = 8;
constexpr int max_tile_rows(int vectors) {
  constexpr int rows[] = {0, 12, 5, 3};
  return rows[vectors];
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
