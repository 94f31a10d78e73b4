// What backward reads and writes next, brought in while it multiplies.
#pragma once

#include <cstdint>

#include "core/attention_problem.h"
#include "cpu/kernels/prefetch.h"
#include "cpu/kernels/tiling.h"
#include "cpu/kernels/visible_keys.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

template <class T>
class BackwardPrefetch {
 public:
  // Blocks of at most `most` queries.
  BackwardPrefetch(const AttentionProblem& p, const AttentionBackward& g, int64_t most,
                   Prefetcher* lines)
      : p_(p), g_(g), most_(most), lines_(lines) {}

  // What comes after the block that ends with query i_end: the next block, the next chunk of keys,
  // or the next head of this run.
  void after(int64_t b, int64_t h, const VisibleKeys& keys, int64_t i_end, Range next_chunk,
             bool last_of_run) const {
    if (i_end < query_rows(p_, b).count) return queries(b, h, i_end);
    if (!next_chunk.empty()) {
      for_each_stretch(
          p_, keys, next_chunk.begin, next_chunk.end, [&](int s, int64_t from, int64_t to, bool) {
            const int64_t first = key_rows_of(p_.sources[s], b).first;
            keys_of(p_.sources[s], b, h,
                    {first + keys.rows[from], keys.rows[to - 1] - keys.rows[from] + 1});
          });
      return;
    }
    if (last_of_run) return;
    h = h + 1 == p_.num_heads ? 0 : h + 1;
    b = h == 0 ? b + 1 : b;
    for (int s = 0; s < p_.num_sources; ++s) {
      const Rows rows = key_rows_of(p_.sources[s], b);
      keys_of(p_.sources[s], b, h, {rows.first, min_of(rows.count, kBackwardBlockN)});
    }
    queries(b, h, 0);
  }

 private:
  // What the block of queries from `first` on reads and writes.
  void queries(int64_t b, int64_t h, int64_t first) const {
    const Rows queries = query_rows(p_, b);
    const Rows rows = {queries.first + first, min_of(queries.count - first, most_)};
    lines_->add_head<T>(p_.q, p_.q_stride, b, h, rows, p_.head_dim);
    if (!g_.associate) lines_->add_head<T>(g_.dout, g_.dout_stride, b, h, rows, p_.head_dim_v);
    lines_->add_head<T>(g_.dq, g_.dq_stride, b, h, rows, p_.head_dim);
  }

  // Rows of one source, as backward reads and writes them.
  void keys_of(const KeySource& source, int64_t b, int64_t h, Rows rows) const {
    const int64_t head = key_head(p_, source, h);
    lines_->add_head<T>(source.k, source.k_stride, b, head, rows, p_.head_dim);
    if (!g_.associate) lines_->add_head<T>(source.v, source.v_stride, b, head, rows, p_.head_dim_v);
    lines_->add_head<T>(source.dk, source.dk_stride, b, head, rows, p_.head_dim);
    lines_->add_head<T>(source.dv, source.dv_stride, b, head, rows, p_.head_dim_v);
  }

  const AttentionProblem& p_;
  const AttentionBackward& g_;
  int64_t most_;
  Prefetcher* lines_;
};

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
