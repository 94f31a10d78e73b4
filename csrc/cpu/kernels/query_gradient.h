// Where a gradient in the shape of the queries goes: each block of queries brings its share from
// each chunk of keys.
#pragma once

#include <cstdint>

#include "cpu/kernels/arena.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/sample.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class E>
class QueryGradient {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  // A sum over several chunks needs an accumulator of its own where T is narrower than Acc.
  static constexpr bool kNarrow = sizeof(T) < sizeof(Acc);

 public:
  QueryGradient(const AttentionProblem& p, void* data, const int64_t* stride, int64_t width,
                bool several_chunks, Arena* arena)
      : p_(p), data_(data), stride_(stride), width_(width) {
    if (kNarrow && data && several_chunks) sum_ = arena->take<Acc>(p.seqlen_q * width);
  }

  bool wanted() const { return data_ != nullptr; }

  void start(int64_t b, int64_t h) {
    b_ = b;
    h_ = h;
    queries_ = query_rows(p_, b);
    if (data_ && !p_.cu_seqlens_q) zero(queries_.count, p_.seqlen_q);
  }

  void zero(int64_t i_begin, int64_t i_end) {
    for (int64_t i = i_begin; i < i_end; ++i) zero_row(row(i), width_);
  }

  // Rows from query i on, to be written once.
  ToRows<E> rows_from(int64_t i) const { return {row(i), stride_[2], width_}; }

  // The share of queries [i_begin, i_end), rows `ld` apart; `first` and `last` chunk of keys.
  void add(int64_t i_begin, int64_t i_end, const Acc* share, int64_t ld, bool first, bool last) {
    for (int64_t i = i_begin; i < i_end; ++i) {
      const Acc* from = share + (i - i_begin) * ld;
      if (first && last) {
        store_row<V>(from, width_, row(i));
      } else if constexpr (kNarrow) {
        Acc* sum = sum_ + i * width_;
        for (int64_t d = 0; d < width_; ++d) sum[d] = first ? from[d] : sum[d] + from[d];
        if (last) store_row<V>(sum, width_, row(i));
      } else {
        T* sum = row(i);
        for (int64_t d = 0; d < width_; ++d) sum[d] = first ? from[d] : sum[d] + from[d];
      }
    }
  }

 private:
  T* row(int64_t i) const { return row_at<T>(data_, stride_, b_, h_, queries_.first + i); }

  const AttentionProblem& p_;
  void* data_;
  const int64_t* stride_;
  int64_t width_;
  Acc* sum_ = nullptr;
  int64_t b_ = 0, h_ = 0;
  Rows queries_{};
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
