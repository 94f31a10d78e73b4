// Backward of few queries: see few_queries.h. A block owns the rows of dK and dV that it reads K
// and V of, and writes them once; warps add up their shares of dQ in order, and so do blocks where
// several share the keys of one head. All queries of a key head are in one block.
#pragma once

#include "cuda/attention_bwd_keys.h"
#include "cuda/attention_one_bwd.h"
#include "cuda/few_queries.h"

namespace crossmodal::cuda {

template <class E, int kChunks, int kRows>
class FewBackward : FewQueries<E, kChunks, kRows, few_backward_unroll(kChunks, kRows)> {
  static constexpr int kUnroll = few_backward_unroll(kChunks, kRows);
  using Base = FewQueries<E, kChunks, kRows, kUnroll>;
  using Base::b, Base::band, Base::h, Base::i, Base::kElements, Base::kPerChunk, Base::lane,
      Base::queries, Base::t, Base::warp;
  using typename Base::Acc;
  using typename Base::Part;
  using typename Base::T;

 public:
  __device__ FewBackward(const BackwardProblem& p, const FewTiling& tiling,
                         const Alignment& aligned, bool plain, Share share, int b, int key_head)
      : Base(p, tiling, b, key_head, 0),
        p_(p),
        g_(p.gradient),
        aligned_(aligned),
        plain_(plain),
        share_(share),
        factor_(exponent_factor<Acc>(p, plain)),
        key_head_(key_head) {}

  __device__ void run() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) start_row(r);
    const Dropout<Acc> dropout(p_, b, 0);
    int next = share_.index * kFewWarps + warp;  // own blocks of the source
    for (int s = 0; s < p_.num_sources; ++s) {
      const KeySource& source = p_.source[s];
      const Rows rows = key_rows_of(source, b);
      const int end = source.cu_seqlens ? rows.count : static_cast<int>(source.seqlen_k);
      const int block = this->block_keys(), blocks = (end + block - 1) / block;
      if (next < blocks) start_source(s);
      for (; next < blocks; next += share_.of * kFewWarps)
        step(s, rows, {s, next * block, min(block, end - next * block)}, dropout);
      next -= blocks;
    }
    leave_dq();
    __syncthreads();
    if (g_.dq)
      for (int r = warp; r < kRows; r += kFewWarps) put_dq(r);
  }

 private:
  // -- queries -----------------------------------------------------------------------------------

  __device__ void start_row(int r) {
    state_[r] = {0, 0, 0, 0};
    const bool live = this->is_query(r) && !is_dead<Acc>(p_, b, h[r], queries, i[r]);
    this->read_query(p_.q, p_.q_stride, p_.head_dim, aligned_.query(), r, live, q_[r]);
    this->read_query(g_.dout, g_.dout_stride, p_.head_dim_v, aligned_.dout(), r, live, dout_[r]);
    Acc out[kElements];
    this->read_query(p_.out, p_.out_stride, p_.head_dim_v, aligned_.out(), r, live, out);
    Acc delta[1] = {dot(dout_[r], out)};
    this->sum_along_row(delta);
    if (!live) return;
    const int64_t at = row_index(p_, b, h[r], queries, i[r]);
    state_[r].top = static_cast<const Acc*>(p_.row_top)[at];
    state_[r].inverse = reciprocal(static_cast<const Acc*>(p_.row_sum)[at]);
    if (g_.dmass)
      for (int s = 0; s < p_.num_sources; ++s)
        delta[0] += static_cast<const Acc*>(g_.dmass)[at * p_.num_sources + s] *
                    static_cast<const Acc*>(p_.mass)[at * p_.num_sources + s];
    if (g_.dlse) delta[0] -= static_cast<const Acc*>(g_.dlse)[at];
    state_[r].delta = delta[0];
  }

  __device__ void start_source(int source) {
    if (!g_.dmass) return;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (state_[r].inverse != 0)
        state_[r].dmass = static_cast<const Acc*>(
            g_.dmass)[row_index(p_, b, h[r], queries, i[r]) * p_.num_sources + source];
  }

  // -- keys --------------------------------------------------------------------------------------

  // Keys of `block`, whatever the sample's length.
  __device__ __forceinline__ void step(int s, const Rows& rows, const KeyBlock& block,
                                       const Dropout<Acc>& dropout) {
    const KeySource& source = p_.source[s];
    const GlobalRows<T> keys = this->key_rows(source, s, aligned_);
    const GlobalRows<T> values = this->value_rows(source, s, aligned_);
    const int first = block.begin + this->group();
    Part k[kUnroll], v[kUnroll];
    bool there[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int j = first + u * this->groups();
      there[u] = j < rows.count && block.holds(j) && this->is_seen_by_any(source, j);
      k[u] = this->read(keys, j, there[u]);
      v[u] = this->read(values, j, there[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int j = first + u * this->groups();
      add_key(source, s, j, there[u], block.holds(j), k[u], v[u], dropout);
    }
  }

  // is_place: whether there is such a row of dK and dV; zeros if it is not `there` for any query.
  __device__ __forceinline__ void add_key(const KeySource& source, int s, int j, bool there,
                                          bool is_place, const Part& k, const Part& v,
                                          const Dropout<Acc>& dropout) {
    Acc key[kElements], value[kElements], product[kRows], dp[kRows];
    this->to_numbers(k, key);
    this->to_numbers(v, value);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      product[r] = dot(q_[r], key);
      dp[r] = dot(dout_[r], value);
    }
    this->sum_along_row(product);
    this->sum_along_row(dp);
    Acc dk[kElements] = {}, dv[kElements] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const RowState<Acc>& row = state_[r];
      Acc slope = 1;
      const Acc score = this->score(plain_, source, r, j, there, product[r], &slope);
      const Acc exponential = exp2_of((score - row.top) * factor_);
      // What is hidden stays 0 even in a row whose sum is NaN; in a row of nothing all is. By
      // choice, not by a product with 0: behind a mask features may be NaN.
      if (exponential == 0 || row.inverse == 0) continue;
      const Acc weight = exponential * row.inverse;
      const bool drops =
          dropout.active() && dropout.drops(p_, b, h[r], i[r], key_offset(p_, s) + j);
      const Acc gradient = drops ? Acc(0) : dp[r] * dropout.kept();
      const Acc ds = weight * (gradient + row.dmass - row.delta) * slope;
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        if (!drops) dv[e] += weight * dout_[r][e];
        dk[e] += ds * q_[r][e];
        dq_[r][e] += ds * key[e];
      }
    }
    if (!is_place) return;
    const int first = source.cu_seqlens ? key_rows_of(source, b).first : 0;
    if (source.dk)
      store(dk, static_cast<Acc>(p_.scale), source.dk, source.dk_stride, s, first + j, p_.head_dim,
            aligned_.dk(s));
    if (source.dv)
      store(dv, dropout.kept(), source.dv, source.dv_stride, s, first + j, p_.head_dim_v,
            aligned_.dv(s));
  }

  __device__ __forceinline__ void store(const Acc (&x)[kElements], Acc factor, void* base,
                                        const int64_t (&stride)[3], int source, int row,
                                        int64_t width, bool aligned) const {
    T* to = row_at<T>(base, stride, b, this->head_of(source), row);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int column = this->column_of(c * kPerChunk);
      const Chunk chunk = numbers_to_chunk<E>(x + c * kPerChunk, factor);
      if (aligned && column + kPerChunk <= width) {
        *reinterpret_cast<Chunk*>(to + column) = chunk;
      } else {
        alignas(16) T values[kPerChunk];
        *reinterpret_cast<Chunk*>(values) = chunk;
#pragma unroll
        for (int e = 0; e < kPerChunk; ++e)
          if (column + e < width) to[column + e] = values[e];
      }
    }
  }

  // -- dQ ----------------------------------------------------------------------------------------

  // One to each warp and row.
  __device__ Acc* dq_in_block(int w, int r) const {
    return reinterpret_cast<Acc*>(shared_memory()) + (w * kRows + r) * p_.head_dim;
  }

  __device__ void leave_dq() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      this->sum_over_groups(dq_[r]);
      if (this->group() != 0) continue;
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (this->column_of(e) < p_.head_dim) dq_in_block(warp, r)[this->column_of(e)] = dq_[r][e];
    }
  }

  // Row r, by a warp. Rows that see nothing have gradient 0.
  __device__ void put_dq(int row) const {
    int head = 0, query = -1;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (r == row) head = h[r], query = i[r];
    if (query < 0 || (p_.cu_seqlens_q && query >= queries.count)) return;
    for (int d = lane; d < p_.head_dim; d += 32) {
      Acc sum = 0;
      for (int w = 0; w < kFewWarps; ++w) sum += dq_in_block(w, row)[d];
      if (share_.of == 1) {
        row_at<T>(g_.dq, g_.dq_stride, b, head, queries.first + query)[d] =
            rounded<T>(sum * static_cast<Acc>(p_.scale));
      } else {
        dq_share<Acc>(p_, share_.index, b, head, query)[d] = sum;
      }
    }
  }

  const BackwardProblem& p_;
  const AttentionBackward& g_;
  const Alignment& aligned_;
  bool plain_;
  Share share_;
  Acc factor_;
  int key_head_;

  RowState<Acc> state_[kRows];
  Acc q_[kRows][kElements], dout_[kRows][kElements], dq_[kRows][kElements] = {};
};

template <class E, int kChunks, int kRows>
__global__ void __launch_bounds__(kFewWarps * 32, few_blocks(kChunks, kRows))
    attention_few_bwd_kernel(const __grid_constant__ BackwardProblem p,
                             const __grid_constant__ FewTiling tiling,
                             const __grid_constant__ Alignment aligned, bool plain, int shares) {
  const int64_t key_heads = p.num_heads / tiling.heads, pairs = p.batch * key_heads;
  for (int64_t tile = blockIdx.x; tile < pairs * shares; tile += gridDim.x) {
    const int64_t pair = tile % pairs;
    const int b = static_cast<int>(pair / key_heads), head = static_cast<int>(pair % key_heads);
    const Share share = {static_cast<int>(tile / pairs), shares};
    if (tile != blockIdx.x) __syncthreads();  // the tile before has been read
    FewBackward<E, kChunks, kRows>(p, tiling, aligned, plain, share, b, head).run();
    if (share.index > 0) continue;
    for (int h = 0; h < tiling.heads; ++h) clear_rows_of_no_query<E>(p, b, head * tiling.heads + h);
    for (int s = 0; s < p.num_sources; ++s)
      clear_rows_of_no_key<E>(p, p.source[s], b, key_head(p, s, head * tiling.heads));
  }
}

template <class E, int kChunks>
void launch_attention_few_bwd(const AttentionProblem& p, const AttentionBackward& g,
                              const BackwardWorkspace& workspace, const FewTiling& tiling,
                              int num_shares, void* stream) {
  if constexpr (kChunks == 1)
    if (tiling.warps == 1)
      return launch_attention_one_bwd<E>(p, g, workspace, tiling.lanes(), stream);
  const BackwardProblem problem = as_parameter(p, g, workspace);
  const int64_t tiles = p.batch * (p.num_heads / tiling.heads) * num_shares;
  launch("attention_few_bwd_kernel",
         tiling.rows_at_once == 1
             ? attention_few_bwd_kernel<E, kChunks, 1>
             : attention_few_bwd_kernel<E, kChunks, few_rows(sizeof(typename E::Element))>,
         tiles, kFewWarps * kWarp, tiling.shared_bytes, stream, problem, tiling, Alignment(p, g),
         scores_are_plain(p), num_shares);
  if (num_shares > 1 && g.dq) launch_merge_dq<E>(problem, num_shares, stream);
}

}  // namespace crossmodal::cuda
