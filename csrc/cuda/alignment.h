// Which tensors have rows that can be copied 16 bytes at a time, found once on the host, where
// plans ask too. A tensor that is not there has.
#pragma once

#include <cstdint>

#include "cuda/host_device.h"
#include "cuda/problem.h"

namespace crossmodal::cuda {

class Alignment {
 public:
  explicit Alignment(const AttentionProblem& p) {
    const size_t size = size_of(p.dtype);
    note(kQuery, p.q, p.q_stride, size);
    note(kOut, p.out, p.out_stride, size);
    for (int s = 0; s < p.num_sources; ++s) {
      note(kKey + 2 * s, p.sources[s].k, p.sources[s].k_stride, size);
      note(kValue + 2 * s, p.sources[s].v, p.sources[s].v_stride, size);
    }
  }

  Alignment(const AttentionProblem& p, const AttentionBackward& g) : Alignment(p) {
    const size_t size = size_of(p.dtype);
    note(kDout, g.dout, g.dout_stride, size);
    note(kDq, g.dq, g.dq_stride, size);
    for (int s = 0; s < p.num_sources; ++s) {
      note(kDk + 2 * s, p.sources[s].dk, p.sources[s].dk_stride, size);
      note(kDv + 2 * s, p.sources[s].dv, p.sources[s].dv_stride, size);
    }
  }

  CROSSMODAL_HOST_DEVICE bool query() const { return bits_ >> kQuery & 1; }
  CROSSMODAL_HOST_DEVICE bool out() const { return bits_ >> kOut & 1; }
  CROSSMODAL_HOST_DEVICE bool key(int source) const { return bits_ >> (kKey + 2 * source) & 1; }
  CROSSMODAL_HOST_DEVICE bool value(int source) const { return bits_ >> (kValue + 2 * source) & 1; }
  CROSSMODAL_HOST_DEVICE bool dout() const { return bits_ >> kDout & 1; }
  CROSSMODAL_HOST_DEVICE bool dq() const { return bits_ >> kDq & 1; }
  CROSSMODAL_HOST_DEVICE bool dk(int source) const { return bits_ >> (kDk + 2 * source) & 1; }
  CROSSMODAL_HOST_DEVICE bool dv(int source) const { return bits_ >> (kDv + 2 * source) & 1; }

  // Whether all have that were given.
  bool every() const { return every_; }

 private:
  enum {
    kQuery,
    kOut,
    kDout,
    kDq,
    kKey,
    kValue,
    kDk = kKey + 2 * kMostSources,
    kDv,
  };
  static_assert(kDv + 2 * kMostSources <= 64, "bits of a word");

  void note(int bit, const void* data, const int64_t* stride, size_t element_size) {
    bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0;
    for (int d = 0; d < 3; ++d) aligned &= stride[d] * element_size % 16 == 0;
    bits_ |= uint64_t{aligned} << bit;
    every_ &= aligned;
  }

  uint64_t bits_ = 0;
  bool every_ = true;
};

}  // namespace crossmodal::cuda
