// Forward of few queries: see few_queries.h. Warps, and blocks where those are few, share out the
// keys; row_shares.h puts their shares together.
#pragma once

#include "cuda/attention_launch.h"
#include "cuda/attention_one_fwd.h"
#include "cuda/few_queries.h"
#include "cuda/row_shares.h"
#include "cuda/softmax.h"

namespace crossmodal::cuda {

template <class E, int kChunks, int kRows>
class FewForward : FewQueries<E, kChunks, kRows, few_unroll(kChunks)> {
  static constexpr int kUnroll = few_unroll(kChunks);
  using Base = FewQueries<E, kChunks, kRows, kUnroll>;
  using Base::b, Base::band, Base::h, Base::i, Base::kElements, Base::lane, Base::p, Base::queries,
      Base::t, Base::warp;
  using typename Base::Acc;
  using typename Base::Part;
  using typename Base::T;

 public:
  __device__ FewForward(const Problem& p, const FewTiling& tiling, const Alignment& aligned,
                        bool plain, const RowShares& shares, int share, int b, int key_head,
                        int first_row)
      : Base(p, tiling, b, key_head, first_row),
        aligned_(aligned),
        plain_(plain),
        shares_(shares),
        share_(share),
        factor_(exponent_factor<Acc>(p, plain)) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) top_[r] = minus_infinity<Acc>();
  }

  __device__ void run() {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      this->read_query(p.q, p.q_stride, p.head_dim, aligned_.query(), r, this->is_query(r), q_[r]);
    if (p.mass) clear_mass();
    walk();
    leave_share();
    __syncthreads();
    for (int r = warp; r < kRows; r += kFewWarps) put_together(r);
  }

 private:
  // One to each warp and row.
  __device__ Acc* share_in_block(int w, int r) const {
    return reinterpret_cast<Acc*>(shared_memory()) + (w * kRows + r) * row_share_size(p);
  }
  __device__ RowShare<Acc> own(int r) const { return {p, share_in_block(warp, r)}; }

  __device__ void clear_mass() {
    for (int x = lane; x < kRows * p.num_sources; x += 32)
      own(x / p.num_sources).set_mass(x % p.num_sources, {0, minus_infinity<Acc>()});
    __syncwarp();
  }

  __device__ void walk() {
    const Dropout<Acc> dropout(p, b, 0);
    KeyWalk keys(p, b, band, 0, queries.count - 1, this->block_keys(),
                 {share_ * kFewWarps + warp, shares_.count * kFewWarps});
    for (KeyBlock block = keys.next(); block.count > 0; block = keys.next()) step(block, dropout);
    if (p.mass) end_source();
  }

  __device__ __forceinline__ void step(const KeyBlock& block, const Dropout<Acc>& dropout) {
    if (p.mass && block.source != source_) {
      end_source();
      source_ = block.source;
    }
    const KeySource& source = p.source[block.source];
    const GlobalRows<T> keys = this->key_rows(source, block.source, aligned_);
    const GlobalRows<T> values = this->value_rows(source, block.source, aligned_);
    const int first = block.begin + this->group();
    Part k[kUnroll], v[kUnroll];
    bool there[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int j = first + u * this->groups();
      there[u] = block.holds(j) && this->is_seen_by_any(source, j);
      k[u] = this->read(keys, j, there[u]);
      v[u] = this->read(values, j, there[u]);
    }
    Acc s[kRows][kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      Acc key[kElements];
      this->to_numbers(k[u], key);
#pragma unroll
      for (int r = 0; r < kRows; ++r) s[r][u] = dot(q_[r], key);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) this->sum_along_row(s[r]);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        Acc slope;
        s[r][u] =
            this->score(plain_, source, r, first + u * this->groups(), there[u], s[r][u], &slope);
      }
    Acc correction[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) correction[r] = to_weights(r, s[r]);
    if (dropout.active()) drop(block, first, dropout, s);
    Acc value[kUnroll][kElements];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) this->to_numbers(v[u], value[u]);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        Acc sum = 0;  // of this block first: shorter chains round less
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) sum += s[r][u] == 0 ? Acc(0) : s[r][u] * value[u][e];
        o_[r][e] = o_[r][e] * correction[r] + sum;
      }
  }

  // Scores -> exponentials relative to the running maximum, which all groups share; see
  // OnlineSoftmax. Returns what earlier sums are to be multiplied with.
  __device__ __forceinline__ Acc to_weights(int r, Acc (&s)[kUnroll]) {
    Acc largest = top_[r];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) largest = larger(largest, s[u]);
    largest = this->largest_of_groups(largest);
    const Acc shift = largest == minus_infinity<Acc>() ? Acc(0) : largest;
    const Acc correction = exp2_of((top_[r] - shift) * factor_);
    top_[r] = largest;
    Acc total = 0;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      s[u] = exp2_of((s[u] - shift) * factor_);
      total += s[u];
    }
    sum_[r].rescale_and_add(correction, total);
    if (p.mass) source_sum_[r].rescale_and_add(correction, total);
    return correction;
  }

  __device__ void drop(const KeyBlock& block, int first, const Dropout<Acc>& dropout,
                       Acc (&s)[kRows][kUnroll]) const {
    const int offset = key_offset(p, block.source);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
        if (dropout.drops(p, b, h[r], i[r], offset + first + u * this->groups())) s[r][u] = 0;
  }

  __device__ void end_source() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Acc sum[1] = {source_sum_[r].value};
      this->sum_over_groups(sum);
      if (lane == 0 && source_ >= 0) own(r).set_mass(source_, {sum[0], top_[r]});
      source_sum_[r] = {};
    }
  }

  __device__ void leave_share() {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const RowShare<Acc> share = own(r);
      Acc sum[1] = {sum_[r].value};
      this->sum_over_groups(sum);
      this->sum_over_groups(o_[r]);
      if (lane == 0) {
        share.top() = top_[r];
        share.sum() = sum[0];
      }
      if (this->group() != 0) continue;
#pragma unroll
      for (int e = 0; e < kElements; ++e)
        if (this->column_of(e) < p.head_dim_v) share.value(this->column_of(e)) = o_[r][e];
    }
  }

  // Of row r, by a warp.
  __device__ void put_together(int row) {
    int head = 0, query = -1;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (r == row) head = h[r], query = i[r];
    if (query < 0 || (p.cu_seqlens_q && query >= queries.count)) return;
    const MergedRow<Acc> merged(p, share_in_block(0, row), kRows * row_share_size(p), kFewWarps,
                                factor_);
    if (shares_.count == 1) {
      write_row<T>(p, plain_, b, head, queries, query, merged);
    } else {
      const RowShare<Acc> share = shares_.at<Acc>(p, share_, b, head, query);
      if (lane == 0) {
        share.top() = merged.top;
        share.sum() = merged.sum;
      }
      if (p.mass)
        for (int s = 0; s < p.num_sources; ++s) {
          const Acc mass = merged.mass(s);
          if (lane == 0) share.set_mass(s, {mass, merged.top});
        }
      merged.for_each_value([&](int column, Acc value) { share.value(column) = value; });
    }
  }

  const Alignment& aligned_;
  bool plain_;
  const RowShares& shares_;
  int share_;
  Acc factor_;
  int source_ = -1;

  Acc q_[kRows][kElements], o_[kRows][kElements] = {};
  Acc top_[kRows];
  LongSum<Acc> sum_[kRows], source_sum_[kRows];
};

template <class E, int kChunks, int kRows>
__global__ void __launch_bounds__(kFewWarps * 32, few_blocks(kChunks, kRows))
    attention_few_fwd_kernel(const __grid_constant__ Problem p,
                             const __grid_constant__ FewTiling tiling,
                             const __grid_constant__ Alignment aligned, bool plain,
                             const __grid_constant__ RowShares shares) {
  const int64_t key_heads = p.num_heads / tiling.heads, pairs = p.batch * key_heads;
  const int64_t tiles = pairs * tiling.tiles() * shares.count;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int row_tile = static_cast<int>(tile % tiling.tiles());
    const int64_t pair = tile / tiling.tiles() % pairs;
    const int share = static_cast<int>(tile / tiling.tiles() / pairs);
    const int b = static_cast<int>(pair / key_heads), head = static_cast<int>(pair % key_heads);
    if (tile != blockIdx.x) __syncthreads();  // the tile before has been read
    FewForward<E, kChunks, kRows>(p, tiling, aligned, plain, shares, share, b, head,
                                  row_tile * kRows)
        .run();
    if (row_tile == 0 && share == 0)
      for (int h = 0; h < tiling.heads; ++h)
        write_rows_beside<typename E::Element, typename E::Acc>(p, b, head * tiling.heads + h);
  }
}

template <class E, int kChunks>
void launch_attention_few_fwd(const AttentionProblem& p, bool plain, const FewTiling& tiling,
                              const RowShares& shares, void* stream) {
  if constexpr (kChunks == 1)
    if (tiling.warps == 1) return launch_attention_one_fwd<E>(p, tiling.lanes(), stream);
  const int64_t tiles = p.batch * (p.num_heads / tiling.heads) * tiling.tiles() * shares.count;
  launch("attention_few_fwd_kernel",
         tiling.rows_at_once == 1
             ? attention_few_fwd_kernel<E, kChunks, 1>
             : attention_few_fwd_kernel<E, kChunks, few_rows(sizeof(typename E::Element))>,
         tiles, kFewWarps * kWarp, tiling.shared_bytes, stream, as_parameter(p), tiling,
         Alignment(p), plain, shares);
}

}  // namespace crossmodal::cuda
