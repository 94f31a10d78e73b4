// Where dK and dV of a chunk of visible keys go. A key head that serves several query heads
// (grouped-query attention) collects their shares in the order of the heads, which one task runs.
#pragma once

#include <cstdint>

#include "cpu/kernels/arena.h"
#include "cpu/kernels/few_queries.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/rows.h"
#include "cpu/kernels/visible_keys.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Where the gradients of a chunk are summed: rows `ld` apart.
template <class Acc>
struct GradientRows {
  Acc* data;
  int64_t ld;

  void zero(int64_t rows, int64_t width) const {
    for (int64_t j = 0; j < rows; ++j) zero_row(data + j * ld, width);
  }
};

template <class E>
class KeyGradients {
  using T = typename E::Element;
  using V = typename E::Vec;
  using Acc = typename E::Acc;
  // Sums in T would round after each head; they get memory of their own.
  static constexpr bool kNarrow = sizeof(T) < sizeof(Acc);

 public:
  KeyGradients(const AttentionProblem& p, Arena* arena) : p_(p) {
    sums_ = arena->take<Sums>(p.num_sources);
    for (int s = 0; s < p.num_sources; ++s) {
      const KeySource& source = p.sources[s];
      wants_dk_ |= source.dk != nullptr;
      wants_dv_ |= source.dv != nullptr;
      if (!kNarrow || !is_shared(source)) continue;
      Acc* dk = arena->take<Acc>(source.dk ? source.seqlen_k * p.head_dim : 0);
      Acc* dv = arena->take<Acc>(source.dv ? source.seqlen_k * p.head_dim_v : 0);
      if (arena->has_memory()) sums_[s] = {dk, dv};
    }
  }

  bool wants_dk() const { return wants_dk_; }
  bool wants_dv() const { return wants_dv_; }

  // Before the chunks of (b, h): keys that are not in the list have gradient 0.
  void start(const VisibleKeys& keys, int64_t b, int64_t h) {
    for (int s = 0; s < p_.num_sources; ++s) {
      const KeySource& source = p_.sources[s];
      const int64_t count = rows_of(source, b).count;
      if (is_shared(source)) {
        if (h % group(source) != 0) continue;
        for (int64_t j = 0; j < count; ++j) {
          if (source.dk) zero_row(dk_sum(s, b, h, j), p_.head_dim);
          if (source.dv) zero_row(dv_sum(s, b, h, j), p_.head_dim_v);
        }
        continue;
      }
      int64_t next = keys.segments[s].begin;
      for (int64_t j = 0; j < count; ++j) {
        if (next < keys.segments[s].end && keys.rows[next] == j) {
          ++next;
          continue;
        }
        if (source.dk) zero_row(dk_row(source, b, h, j), p_.head_dim);
        if (source.dv) zero_row(dv_row(source, b, h, j), p_.head_dim_v);
      }
    }
  }

  // The output's own rows for visible keys [k_begin, k_end), if sums can be formed there, else
  // `scratch`.
  GradientRows<Acc> dk_in_place(const VisibleKeys& keys, int64_t b, int64_t h, int64_t k_begin,
                                int64_t k_end, GradientRows<Acc> scratch) const {
    if constexpr (!kNarrow) {
      if (const KeySource* source = only_source(keys, k_begin, k_end))
        if (source->dk && p_.head_dim % V::kLanes == 0)
          return {dk_row(*source, b, h, keys.rows[k_begin]), source->dk_stride[2]};
    }
    return scratch;
  }
  GradientRows<Acc> dv_in_place(const VisibleKeys& keys, int64_t b, int64_t h, int64_t k_begin,
                                int64_t k_end, GradientRows<Acc> scratch) const {
    if constexpr (!kNarrow) {
      if (const KeySource* source = only_source(keys, k_begin, k_end))
        if (source->dv && p_.head_dim_v % V::kLanes == 0)
          return {dv_row(*source, b, h, keys.rows[k_begin]), source->dv_stride[2]};
    }
    return scratch;
  }

  // The output's own rows for visible keys [k_begin, k_end), to be written once; none if keys lie
  // apart or share their head.
  ToRows<E> dk_rows(const VisibleKeys& keys, int64_t b, int64_t h, int64_t k_begin,
                    int64_t k_end) const {
    const KeySource* source = only_source(keys, k_begin, k_end);
    if (!source || !source->dk) return {nullptr, 0, 0};
    return {dk_row(*source, b, h, keys.rows[k_begin]), source->dk_stride[2], p_.head_dim};
  }
  ToRows<E> dv_rows(const VisibleKeys& keys, int64_t b, int64_t h, int64_t k_begin,
                    int64_t k_end) const {
    const KeySource* source = only_source(keys, k_begin, k_end);
    if (!source || !source->dv) return {nullptr, 0, 0};
    return {dv_row(*source, b, h, keys.rows[k_begin]), source->dv_stride[2], p_.head_dim_v};
  }

  // The shares of visible keys [k_begin, k_end) of (b, h), row by row; every key comes once. Null:
  // they were formed in place.
  void add(const VisibleKeys& keys, int64_t b, int64_t h, int64_t k_begin, int64_t k_end,
           const Acc* dk, int64_t width, const Acc* dv, int64_t width_v) {
    for_each_stretch(p_, keys, k_begin, k_end, [&](int s, int64_t from, int64_t to, bool) {
      const KeySource& source = p_.sources[s];
      const bool shared = is_shared(source);
      for (int64_t x = from; x < to; ++x) {
        const int64_t j = keys.rows[x];
        const bool has_dk = dk && source.dk, has_dv = dv && source.dv;
        const Acc* dk_x = has_dk ? dk + (x - k_begin) * width : nullptr;
        const Acc* dv_x = has_dv ? dv + (x - k_begin) * width_v : nullptr;
        if (shared) {
          if (has_dk) add_row(dk_x, p_.head_dim, dk_sum(s, b, h, j));
          if (has_dv) add_row(dv_x, p_.head_dim_v, dv_sum(s, b, h, j));
        } else {
          if (has_dk) store_row<V>(dk_x, p_.head_dim, dk_row(source, b, h, j));
          if (has_dv) store_row<V>(dv_x, p_.head_dim_v, dv_row(source, b, h, j));
        }
      }
    });
  }

  // What each key's gradient is a sum of: rows of queries, and of each its weights, by keys.
  struct Terms {
    const Acc* weights;
    const T* const* rows;
  };

  // All gradients of (b, h), each formed and written at once, from `count` rows of terms whose
  // weights are `ld` apart. No head is shared.
  void write_sums(const VisibleKeys& keys, int64_t b, int64_t h, Terms dk, Terms dv, int64_t ld,
                  int64_t count) const {
    for_each_stretch(p_, keys, 0, keys.count, [&](int s, int64_t from, int64_t to, bool) {
      const KeySource& source = p_.sources[s];
      for (int64_t x = from; x < to; ++x) {
        const int64_t j = keys.rows[x];
        if (source.dk)
          write_weighted_sum<V>(dk.weights + x, ld, dk.rows, count, p_.head_dim,
                                dk_row(source, b, h, j));
        if (source.dv)
          write_weighted_sum<V>(dv.weights + x, ld, dv.rows, count, p_.head_dim_v,
                                dv_row(source, b, h, j));
      }
    });
  }

  // After the chunks of (b, h).
  void finish(int64_t b, int64_t h) {
    if (!kNarrow) return;
    for (int s = 0; s < p_.num_sources; ++s) {
      const KeySource& source = p_.sources[s];
      if (!is_shared(source) || (h + 1) % group(source) != 0) continue;
      for (int64_t j = 0; j < rows_of(source, b).count; ++j) {
        if (source.dk) store_row<V>(dk_sum(s, b, h, j), p_.head_dim, dk_row(source, b, h, j));
        if (source.dv) store_row<V>(dv_sum(s, b, h, j), p_.head_dim_v, dv_row(source, b, h, j));
      }
    }
  }

 private:
  struct Sums {
    Acc *dk, *dv;  // [seqlen_k, width]
  };

  // The source that holds all of [k_begin, k_end) in neighbouring rows, for no other query head; or
  // null.
  const KeySource* only_source(const VisibleKeys& keys, int64_t k_begin, int64_t k_end) const {
    for (int s = 0; s < p_.num_sources; ++s) {
      const Segment& segment = keys.segments[s];
      if (segment.begin <= k_begin && k_end <= segment.end && segment.contiguous &&
          !is_shared(p_.sources[s]))
        return &p_.sources[s];
    }
    return nullptr;
  }

  int64_t group(const KeySource& source) const { return p_.num_heads / source.num_heads_k; }
  bool is_shared(const KeySource& source) const { return source.num_heads_k != p_.num_heads; }

  // All rows that belong to the sample, hidden ones included.
  static Rows rows_of(const KeySource& source, int64_t b) {
    return source.cu_seqlens ? key_rows_of(source, b) : Rows{0, source.seqlen_k};
  }
  T* dk_row(const KeySource& source, int64_t b, int64_t h, int64_t j) const {
    return row_at<T>(source.dk, source.dk_stride, b, key_head(p_, source, h),
                     rows_of(source, b).first + j);
  }
  T* dv_row(const KeySource& source, int64_t b, int64_t h, int64_t j) const {
    return row_at<T>(source.dv, source.dv_stride, b, key_head(p_, source, h),
                     rows_of(source, b).first + j);
  }
  Acc* dk_sum(int s, int64_t b, int64_t h, int64_t j) const {
    if constexpr (kNarrow)
      return sums_[s].dk + j * p_.head_dim;
    else
      return dk_row(p_.sources[s], b, h, j);
  }
  Acc* dv_sum(int s, int64_t b, int64_t h, int64_t j) const {
    if constexpr (kNarrow)
      return sums_[s].dv + j * p_.head_dim_v;
    else
      return dv_row(p_.sources[s], b, h, j);
  }
  static void add_row(const Acc* share, int64_t n, Acc* sum) {
    for (int64_t d = 0; d < n; ++d) sum[d] += share[d];
  }

  const AttentionProblem& p_;
  Sums* sums_;
  bool wants_dk_ = false, wants_dv_ = false;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
