// Masks and biases: one element at a time, of any type and broadcast form.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/attention_problem.h"
#include "cuda/math.h"
#include "cuda/ptx.h"

namespace crossmodal::cuda {

// The same for every query: it hides or shifts whole keys.
__device__ inline bool is_per_key(const ScoreTerm& term) { return term.stride[2] == 0; }

__device__ inline int64_t term_offset(const ScoreTerm& term, int64_t b, int64_t h, int64_t i,
                                      int64_t j) {
  return b * term.stride[0] + h * term.stride[1] + i * term.stride[2] + j * term.stride[3];
}

template <class Acc>
__device__ inline Acc term_value(const ScoreTerm& term, int64_t at) {
  switch (term.type) {
    case TermType::kFloat32:
      return static_cast<const float*>(term.data)[at];
    case TermType::kBFloat16:
      return to_float(static_cast<const BFloat16*>(term.data)[at]);
    case TermType::kFloat16:
      return to_float(static_cast<const Float16*>(term.data)[at]);
    case TermType::kFloat64:
      return static_cast<Acc>(static_cast<const double*>(term.data)[at]);
    default:
      return static_cast<const uint8_t*>(term.data)[at] ? Acc(0) : minus_infinity<Acc>();
  }
}

__device__ inline bool hides_key(const ScoreTerm& term, int64_t b, int64_t h, int64_t i,
                                 int64_t j) {
  return term_value<double>(term, term_offset(term, b, h, i, j)) == minus_infinity<double>();
}

// fn(value_at), where value_at(at) is term_value<Acc>(term, at): its type is asked for once.
template <class Acc, class Fn>
__device__ __forceinline__ void with_values(const ScoreTerm& term, Fn fn) {
  const auto* data = term.data;
  switch (term.type) {
    case TermType::kFloat32:
      return fn([=](int64_t at) -> Acc { return static_cast<const float*>(data)[at]; });
    case TermType::kBFloat16:
      return fn(
          [=](int64_t at) -> Acc { return to_float(static_cast<const BFloat16*>(data)[at]); });
    case TermType::kFloat16:
      return fn([=](int64_t at) -> Acc { return to_float(static_cast<const Float16*>(data)[at]); });
    case TermType::kFloat64:
      return fn([=](int64_t at) -> Acc {
        return static_cast<Acc>(static_cast<const double*>(data)[at]);
      });
    default:
      return fn([=](int64_t at) -> Acc {
        return static_cast<const uint8_t*>(data)[at] ? Acc(0) : minus_infinity<Acc>();
      });
  }
}

// score + factor * value of a term, -inf where the term hides; -inf stays.
template <class Acc>
__device__ inline Acc with_term(Acc score, Acc factor, Acc value) {
  const bool hidden = value == minus_infinity<Acc>() || score == minus_infinity<Acc>();
  return hidden ? minus_infinity<Acc>() : score + factor * value;
}

}  // namespace crossmodal::cuda
