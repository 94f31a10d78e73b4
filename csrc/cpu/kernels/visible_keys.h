// The keys that some query of (b, h) may see, over all sources, as one list in ascending order.
// Lengths, key masks and -inf key biases end here: what is not in the list is never read.
#pragma once

#include <cstdint>

#include "core/attention_problem.h"
#include "cpu/kernels/sample.h"
#include "cpu/kernels/score_terms.h"

namespace crossmodal::cpu::CROSSMODAL_ISA {
namespace {

// Positions [begin, end) of the list belong to one source.
struct Segment {
  int64_t begin, end;
  bool contiguous;  // rows follow each other without a gap
};

struct VisibleKeys {
  int64_t count;
  int32_t* rows;      // [count], row within its own sample and source
  Segment* segments;  // [num_sources]
};

// Whether some query of (b, h) may see key j.
inline bool is_seen(const AttentionProblem& p, const KeySource& source, int64_t b, int64_t h,
                    int64_t j) {
  // What is the same for every query is asked once.
  const int64_t queries = p.skips_unseen_keys ? p.seqlen_q : 1;
  for (int64_t i = 0; i < queries; ++i) {
    bool hidden = false;
    for (int t = 0; t < source.num_terms; ++t)
      hidden |= (p.skips_unseen_keys || is_per_key(source.terms[t])) &&
                hides_key(source.terms[t], b, h, i, j);
    if (!hidden) return true;
  }
  return false;
}

// `rows` and `segments` have room for total_keys and num_sources entries.
inline VisibleKeys find_visible_keys(const AttentionProblem& p, int64_t b, int64_t h, int32_t* rows,
                                     Segment* segments) {
  VisibleKeys keys{0, rows, segments};
  for (int s = 0; s < p.num_sources; ++s) {
    const KeySource& source = p.sources[s];
    // Without queries nobody sees a key, and masks have no element that could be read.
    const int64_t length = p.seqlen_q > 0 ? key_rows_of(source, b).count : 0;
    const int64_t begin = keys.count;
    bool masked = false;
    for (int t = 0; t < source.num_terms; ++t)
      masked |= is_per_key(source.terms[t]) || p.skips_unseen_keys;
    if (masked) {
      for (int64_t j = 0; j < length; ++j)
        if (is_seen(p, source, b, h, j)) rows[keys.count++] = static_cast<int32_t>(j);
    } else {
      for (int64_t j = 0; j < length; ++j) rows[keys.count++] = static_cast<int32_t>(j);
    }
    const int64_t n = keys.count - begin;
    const bool contiguous = n == 0 || rows[keys.count - 1] - rows[begin] == n - 1;
    segments[s] = {begin, keys.count, contiguous};
  }
  return keys;
}

// How many keys of the only source stand before row `row`.
inline int64_t keys_before(const VisibleKeys& keys, int64_t row) {
  if (keys.count == 0 || row <= keys.rows[0]) return 0;
  if (row > keys.rows[keys.count - 1]) return keys.count;
  if (keys.segments[0].contiguous) return row - keys.rows[0];
  int64_t low = 0, high = keys.count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (keys.rows[middle] < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Which of the chunk [begin, end) of the list queries [i_first, i_last] reach together, counted
// from the chunk's beginning.
inline Range reach(const Band& band, const VisibleKeys& keys, int64_t i_first, int64_t i_last,
                   int64_t begin, int64_t end) {
  if (band.open) return {0, end - begin};
  const int64_t from = max_of(begin, keys_before(keys, i_first + band.first));
  const int64_t to = min_of(end, keys_before(keys, i_last + band.last + 1));
  return {from - begin, max_of(from, to) - begin};
}

// Calls fn(source index, begin, end, contiguous) for each stretch of [begin, end) that lies in one
// source.
template <class Fn>
void for_each_stretch(const AttentionProblem& p, const VisibleKeys& keys, int64_t begin,
                      int64_t end, Fn fn) {
  for (int s = 0; s < p.num_sources; ++s) {
    const int64_t from = max_of(begin, keys.segments[s].begin);
    const int64_t to = min_of(end, keys.segments[s].end);
    if (from < to) fn(s, from, to, keys.segments[s].contiguous);
  }
}

// Row pointers of visible keys [begin, end).
template <class T>
void key_rows(const AttentionProblem& p, const VisibleKeys& keys, int64_t b, int64_t h,
              int64_t begin, int64_t end, const T** k_rows, const T** v_rows) {
  for_each_stretch(p, keys, begin, end, [&](int s, int64_t from, int64_t to, bool) {
    const KeySource& source = p.sources[s];
    const int64_t first = key_rows_of(source, b).first, head = key_head(p, source, h);
    const T* k = row_at<const T>(source.k, source.k_stride, b, head, first);
    const T* v = row_at<const T>(source.v, source.v_stride, b, head, first);
    for (int64_t j = from; j < to; ++j) {
      k_rows[j - begin] = k + keys.rows[j] * source.k_stride[2];
      v_rows[j - begin] = v + keys.rows[j] * source.v_stride[2];
    }
  });
}

}  // namespace
}  // namespace crossmodal::cpu::CROSSMODAL_ISA
