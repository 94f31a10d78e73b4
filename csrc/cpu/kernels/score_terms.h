// Masks and biases: reading them for a list of visible keys, and adding up their gradients.
#pragma once

#include <cstdint>

#include "core/attention_problem.h"
#include "cpu/kernels/engine.h"
#include "cpu/kernels/half.h"
#include "cpu/kernels/rows.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class Acc>
constexpr Acc minus_infinity() {
  return -__builtin_huge_val();
}

// The same for every query: it hides or shifts whole keys.
inline bool is_per_key(const ScoreTerm& term) { return term.stride[2] == 0; }

inline double term_value(const float* p) { return *p; }
inline double term_value(const double* p) { return *p; }
inline double term_value(const BFloat16* p) { return to_float(*p); }
inline double term_value(const Float16* p) { return to_float(*p); }

// Calls fn with a typed null pointer that stands for the term's float type.
template <class Fn>
void with_float_type(TermType type, Fn fn) {
  switch (type) {
    case TermType::kFloat32:
      return fn(static_cast<const float*>(nullptr));
    case TermType::kBFloat16:
      return fn(static_cast<const BFloat16*>(nullptr));
    case TermType::kFloat16:
      return fn(static_cast<const Float16*>(nullptr));
    case TermType::kFloat64:
      return fn(static_cast<const double*>(nullptr));
    case TermType::kBool:
      return;
  }
}

inline int64_t term_offset(const ScoreTerm& term, int64_t b, int64_t h, int64_t i) {
  return b * term.stride[0] + h * term.stride[1] + i * term.stride[2];
}

// Whether the term hides key j from query i of (b, h).
inline bool hides_key(const ScoreTerm& term, int64_t b, int64_t h, int64_t i, int64_t j) {
  const int64_t at = term_offset(term, b, h, i) + j * term.stride[3];
  if (term.type == TermType::kBool) return static_cast<const uint8_t*>(term.data)[at] == 0;
  bool hidden = false;
  with_float_type(term.type, [&](auto* type) {
    hidden = term_value(static_cast<decltype(type)>(term.data) + at) == minus_infinity<double>();
  });
  return hidden;
}

// Whether it is one element that hides no key: what stands for no mask where a compiled program
// wants one.
inline bool hides_nothing(const ScoreTerm& term) {
  for (const int64_t stride : term.stride)
    if (stride != 0) return false;
  return term.type == TermType::kBool && !hides_key(term, 0, 0, 0, 0);
}

// bias[x] += the term at key rows[x] for query i; -inf where it hides, and -inf stays.
template <class Acc>
void add_term(const ScoreTerm& term, int64_t b, int64_t h, int64_t i, const int32_t* rows,
              int64_t n, bool contiguous, Acc* bias) {
  const int64_t at = term_offset(term, b, h, i);
  const bool direct = contiguous && term.stride[3] == 1;
  if (n == 0) return;
  if (term.type == TermType::kBool) {
    const uint8_t* p = static_cast<const uint8_t*>(term.data) + at;
    if (direct) {
      p += rows[0];
      for (int64_t x = 0; x < n; ++x) bias[x] = p[x] ? bias[x] : minus_infinity<Acc>();
    } else {
      for (int64_t x = 0; x < n; ++x)
        bias[x] = p[rows[x] * term.stride[3]] ? bias[x] : minus_infinity<Acc>();
    }
    return;
  }
  with_float_type(term.type, [&](auto* type) {
    auto* p = static_cast<decltype(type)>(term.data) + at;
    const Acc factor = static_cast<Acc>(term.factor);
    auto add = [factor](Acc old, Acc value) {
      return old == minus_infinity<Acc>() || value == minus_infinity<Acc>() ? minus_infinity<Acc>()
                                                                            : old + factor * value;
    };
    if (direct) {
      p += rows[0];
      for (int64_t x = 0; x < n; ++x) bias[x] = add(bias[x], static_cast<Acc>(term_value(p + x)));
    } else {
      for (int64_t x = 0; x < n; ++x)
        bias[x] = add(bias[x], static_cast<Acc>(term_value(p + rows[x] * term.stride[3])));
    }
  });
}

// grad[key rows[x]] += factor * dscore[x].
template <class V, class Sum>
void add_gradient_row(Sum* grad, int64_t step, const int32_t* rows, int64_t n, bool contiguous,
                      Sum factor, const typename V::Scalar* dscore) {
  if (step == 0) {
    *grad += factor * sum_row<V>(dscore, n);
  } else if (contiguous && step == 1) {
    grad += rows[0];
    for (int64_t x = 0; x < n; ++x) grad[x] += factor * dscore[x];
  } else {
    for (int64_t x = 0; x < n; ++x) grad[rows[x] * step] += factor * dscore[x];
  }
}

// The term's gradient for query i.
template <class V>
void add_term_gradient(const ScoreTerm& term, int64_t partial, int64_t b, int64_t h, int64_t i,
                       const int32_t* rows, int64_t n, bool contiguous,
                       const typename V::Scalar* dscore) {
  if (n == 0) return;
  const int64_t* stride = term.grad_stride;
  const int64_t at = partial * term.grad_size + b * stride[0] + h * stride[1] + i * stride[2];
  if (term.grad_is_double) {
    add_gradient_row<V>(static_cast<double*>(term.grad) + at, stride[3], rows, n, contiguous,
                        term.factor, dscore);
  } else {
    add_gradient_row<V>(static_cast<float*>(term.grad) + at, stride[3], rows, n, contiguous,
                        static_cast<float>(term.factor), dscore);
  }
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
