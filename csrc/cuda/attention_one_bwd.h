// Backward of one query to a head of keys: see one_query.h. Keys and values are read once, and the
// rows of their gradients are written once.
#pragma once

#include "cuda/attention_bwd.h"
#include "cuda/one_query.h"

namespace crossmodal::cuda {

template <class E, int kLanes>
class OneBackward : OneQuery<E, kLanes, kOneBackwardUnroll> {
  static constexpr int kUnroll = kOneBackwardUnroll;
  using Base = OneQuery<E, kLanes, kUnroll>;
  using Base::b, Base::h, Base::kElements, Base::kGroups, Base::pair;
  using typename Base::Acc;
  using typename Base::T;

 public:
  __device__ OneBackward(const BackwardProblem& p, int pair)
      : Base(p, pair),
        p_(p),
        g_(p.gradient),
        factor_(exponent_factor<Acc, true>(p)),
        scale_(static_cast<Acc>(p.scale)) {
    keep(factor_);
    keep(scale_);
  }

  __device__ void run() {
    const bool live = start();
    for (int s = 0; s < p_.num_sources; ++s) walk_source(s, live);
    this->sum_over_groups(dq_);
    if (g_.dq && this->group() == 0)
      store_chunk(this->query_part(g_.dq, g_.dq_stride), numbers_to_chunk<E>(dq_, scale_).words);
  }

 private:
  // False: the query sees nothing, and its rows may hold anything.
  __device__ bool start() {
    if (is_dead<Acc>(p_, b, h, query_rows(p_, b), 0)) return false;
    Acc out[kElements];
    this->read_query(p_.q, p_.q_stride, q_);
    this->read_query(g_.dout, g_.dout_stride, dout_);
    this->read_query(p_.out, p_.out_stride, out);
    Acc delta[1] = {dot(dout_, out)};
    this->sum_along_row(delta);
    if (g_.dlse) delta[0] -= static_cast<const Acc*>(g_.dlse)[pair];
    if (g_.dmass)
      for (int s = 0; s < p_.num_sources; ++s)
        delta[0] += dmass(s) * static_cast<const Acc*>(p_.mass)[place_in_mass(s)];
    top_ = static_cast<const Acc*>(p_.row_top)[pair];
    inverse_ = reciprocal(static_cast<const Acc*>(p_.row_sum)[pair]);
    delta_ = delta[0];
    return true;
  }

  __device__ int64_t place_in_mass(int s) const {
    return static_cast<int64_t>(pair) * p_.num_sources + s;
  }
  __device__ Acc dmass(int s) const { return static_cast<const Acc*>(g_.dmass)[place_in_mass(s)]; }

  struct SourceRows {
    LaneRows k, v, dk, dv;
    bool wants_dk, wants_dv;
  };

  __device__ void walk_source(int s, bool live) {
    const KeySource& source = p_.source[s];
    const int count = live ? key_rows_of(source, b).count : 0, last = count - 1;
    const SourceRows rows = {this->rows_of(s, source.k, source.k_stride),
                             this->rows_of(s, source.v, source.v_stride),
                             this->rows_of(s, source.dk, source.dk_stride),
                             this->rows_of(s, source.dv, source.dv_stride),
                             source.dk != nullptr,
                             source.dv != nullptr};
    if (count > 0) {
      this->load(rows.k, this->group(), last, k_);
      this->load(rows.v, this->group(), last, v_);
      const Acc delta = g_.dmass ? delta_ - dmass(s) : delta_;
      this->walk(count, [&](auto whole, int j) { step(whole, rows, j, last, delta); });
    }
    // Keys that the query does not see.
    for (int j = count + this->group(); j < source.seqlen_k; j += kGroups) {
      if (rows.wants_dk) store(rows.dk, j, {});
      if (rows.wants_dv) store(rows.dv, j, {});
    }
  }

  template <class Whole>
  __device__ __forceinline__ void step(Whole, const SourceRows& rows, int j, int last, Acc delta) {
    const int next = j + Base::kBlock;
    Acc product[kUnroll], dp[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      Acc key[kElements], value[kElements];
      chunk_to_numbers<T>(k_[u], key);
      chunk_to_numbers<T>(v_[u], value);
      product[u] = dot(q_, key);
      dp[u] = dot(dout_, value);
    }
    if (Whole::value) this->load(rows.v, next, last, v_);
    this->sum_along_row(product);
    this->sum_along_row(dp);
    const auto is_key = [&](int u) { return Whole::value || j + u * kGroups <= last; };
    Acc weight[kUnroll], ds[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      weight[u] = exp2_of((product[u] - top_) * factor_) * inverse_;
      ds[u] = weight[u] * (dp[u] - delta);
    }
    if (rows.wants_dv) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (is_key(u)) store(rows.dv, j + u * kGroups, numbers_to_chunk<E>(dout_, weight[u]));
    }
    if (rows.wants_dk) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (is_key(u)) store(rows.dk, j + u * kGroups, numbers_to_chunk<E>(q_, ds[u] * scale_));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      Acc key[kElements];
      chunk_to_numbers<T>(k_[u], key);
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (is_key(u)) dq_[e] += ds[u] * key[e];
    }
    if (Whole::value) this->load(rows.k, next, last, k_);
  }

  __device__ static __forceinline__ void store(const LaneRows& rows, int j, const Chunk& chunk) {
    store_chunk(rows.at(j), chunk.words);
  }

  const BackwardProblem& p_;
  const AttentionBackward& g_;
  Acc factor_, scale_;
  Acc top_, inverse_, delta_;
  Acc q_[kElements], dout_[kElements], dq_[kElements] = {};
  Chunk k_[kUnroll], v_[kUnroll];  // of the block at hand, or the next
};

template <class E, int kLanes>
__global__ void __launch_bounds__(kFewWarps * 32, kOneBlocks)
    attention_one_bwd_kernel(const __grid_constant__ BackwardProblem p) {
  const int64_t pair = static_cast<int64_t>(blockIdx.x) * kFewWarps + threadIdx.x / 32;
  if (pair < p.batch * p.num_heads) OneBackward<E, kLanes>(p, static_cast<int>(pair)).run();
}

template <class E>
void launch_attention_one_bwd(const AttentionProblem& p, const AttentionBackward& g,
                              const BackwardWorkspace& workspace, int lanes, void* stream) {
  with_lanes(lanes, [&](auto count) {
    launch("attention_one_bwd_kernel", attention_one_bwd_kernel<E, count()>,
           ceil_div(p.batch * p.num_heads, kFewWarps), kFewWarps * kWarp, 0, stream,
           as_parameter(p, g, workspace));
  });
}

}  // namespace crossmodal::cuda
