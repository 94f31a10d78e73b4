// Forward of one query to a head of keys: see one_query.h.
#pragma once

#include "cuda/attention_launch.h"
#include "cuda/launch.h"
#include "cuda/one_query.h"
#include "cuda/row_results.h"
#include "cuda/row_shares.h"
#include "cuda/scores.h"
#include "cuda/softmax.h"

namespace crossmodal::cuda {

template <class E, int kLanes>
class OneForward : OneQuery<E, kLanes, few_unroll(1)> {
  static constexpr int kUnroll = few_unroll(1);
  using Base = OneQuery<E, kLanes, kUnroll>;
  using Base::b, Base::h, Base::kElements, Base::kGroups, Base::lane, Base::p, Base::pair;
  using typename Base::Acc;
  using typename Base::T;

 public:
  __device__ OneForward(const Problem& p, int pair)
      : Base(p, pair), factor_(exponent_factor<Acc, true>(p)) {}

  __device__ void run() {
    const bool exists = query_rows(p, b).count > 0;
    if (exists) {
      this->read_query(p.q, p.q_stride, q_);
      for (int s = 0; s < p.num_sources; ++s) walk_source(s);
    }
    unite_groups();
    write(exists);
  }

 private:
  __device__ void walk_source(int s) {
    const KeySource& source = p.source[s];
    const int count = key_rows_of(source, b).count, last = count - 1;
    if (count == 0) return;
    const Acc before = top_;
    sum_ = {};
    const LaneRows keys = this->rows_of(s, source.k, source.k_stride);
    const LaneRows values = this->rows_of(s, source.v, source.v_stride);
    this->load(keys, this->group(), last, k_);
    this->load(values, this->group(), last, v_);
    this->walk(count, [&](auto whole, int j) { step(whole, keys, values, j, last); });
    total_ = total_ * shrink(before) + sum_.value;
    if (p.mass) keep_mass(s);
  }

  // Lane s has that of source s until the end.
  __device__ void keep_mass(int s) {
    const Acc top = this->largest_of_groups(top_);
    Acc sum[1] = {sum_.value * shrink(top_, top)};
    this->sum_over_groups(sum);
    if (lane == s) mass_ = {sum[0], top};
  }

  // Rows of the next block are asked for as soon as registers are free for them. Each group of
  // lanes has a softmax of its own: what they share is found at the end.
  template <class Whole>
  __device__ __forceinline__ void step(Whole, const LaneRows& keys, const LaneRows& values, int j,
                                       int last) {
    const int next = j + Base::kBlock;
    Acc s[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      Acc key[kElements];
      chunk_to_numbers<T>(k_[u], key);
      s[u] = dot(q_, key);
    }
    if (Whole::value) this->load(keys, next, last, k_);
    this->sum_along_row(s);
    if (!Whole::value) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (j + u * kGroups > last) {
          s[u] = minus_infinity<Acc>();
          v_[u] = {};  // the last row again, which may hold anything
        }
    }
    const Acc correction = to_weights(s);
    Acc sum[kElements] = {};  // of this block first: shorter chains round less
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      Acc value[kElements];
      chunk_to_numbers<T>(v_[u], value);
#pragma unroll
      for (int e = 0; e < kElements; ++e) sum[e] += s[u] * value[e];
    }
    if (Whole::value) this->load(values, next, last, v_);
#pragma unroll
    for (int e = 0; e < kElements; ++e) o_[e] = o_[e] * correction + sum[e];
  }

  // As FewForward::to_weights, of one group.
  __device__ __forceinline__ Acc to_weights(Acc (&s)[kUnroll]) {
    const Acc before = top_;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) top_ = larger(top_, s[u]);
    const Acc correction = shrink(before);
    Acc total = 0;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      s[u] = shrink(s[u]);
      total += s[u];
    }
    sum_.rescale_and_add(correction, total);
    return correction;
  }
  // The exponential of a score, relative to a maximum. Nothing visible yet: see OnlineSoftmax.
  __device__ __forceinline__ Acc shrink(Acc score, Acc top) const {
    const Acc shift = top == minus_infinity<Acc>() ? Acc(0) : top;
    return exp2_of((score - shift) * factor_);
  }
  __device__ __forceinline__ Acc shrink(Acc score) const { return shrink(score, top_); }

  __device__ void unite_groups() {
    const Acc own = top_;
    top_ = this->largest_of_groups(top_);
    const Acc scale = shrink(own);
    Acc sum[1] = {total_ * scale};
    this->sum_over_groups(sum);
    total_ = sum[0];
#pragma unroll
    for (int e = 0; e < kElements; ++e) o_[e] *= scale;
    this->sum_over_groups(o_);
  }

  __device__ void write(bool exists) {
    const RowTotal<Acc> total =
        exists ? row_total<true>(p, b, h, top_, total_) : RowTotal<Acc>::none();
    if (lane == 0) write_statistics(p, pair, total);
    if (p.mass && lane < p.num_sources)
      write_mass(p, pair, lane, total, mass_.sum * shrink(mass_.top));
    // By choice, not by a product with 0: a value may have been NaN.
    const Chunk row = total_ == 0 ? Chunk{} : numbers_to_chunk<E>(o_, total.inverse);
    if (this->group() == 0) store_chunk(this->query_part(p.out, p.out_stride), row.words);
  }

  Acc factor_;
  Acc q_[kElements], o_[kElements] = {};
  Acc top_ = minus_infinity<Acc>();
  LongSum<Acc> sum_;  // of the source at hand
  Acc total_ = 0;
  SourceMass<Acc> mass_ = {0, minus_infinity<Acc>()};
  Chunk k_[kUnroll], v_[kUnroll];  // of the block at hand, or the next
};

template <class E, int kLanes>
__global__ void __launch_bounds__(kFewWarps * 32, kOneBlocks)
    attention_one_fwd_kernel(const __grid_constant__ Problem p) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kFewWarps + threadIdx.x / 32;
  if (pair < p.batch * p.num_heads) OneForward<E, kLanes>(p, static_cast<int>(pair)).run();
}

template <class E>
void launch_attention_one_fwd(const AttentionProblem& p, int lanes, void* stream) {
  with_lanes(lanes, [&](auto count) {
    launch("attention_one_fwd_kernel", attention_one_fwd_kernel<E, count()>,
           ceil_div(p.batch * p.num_heads, kFewWarps), kFewWarps * kWarp, 0, stream,
           as_parameter(p));
  });
}

}  // namespace crossmodal::cuda
