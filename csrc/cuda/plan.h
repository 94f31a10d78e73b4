// Which kernel a problem gets on a device, in what tiles, and why not a better one. Plain C++ that
// can be asked about any device, present or not.
#pragma once

#include <string>
#include <vector>

#include "core/attention_problem.h"
#include "cuda/device.h"
#include "cuda/few_tiling.h"
#include "cuda/tiling.h"

namespace crossmodal::cuda {

// Widths that kernels are compiled for: attention_fwd/*.cu and so on.
template <int... kWidths>
struct Widths {
  // The smallest that holds a row, or the largest there is.
  static constexpr int holding(int64_t columns) {
    int found = 0;
    for (const int width : {kWidths...})
      if (found == 0 || (found < columns && width > found)) found = width;
    return found;
  }
};
template <DType kType>
struct CompiledWidths {  // of half precision
  using Forward = Widths<32, 64, 96, 128>;
  using Backward = Widths<32, 64, 128>;
  using Short = Widths<32, 64, 128>;
  using Associate = Widths<64>;
  using FewChunks = Widths<1>;
};
template <>
struct CompiledWidths<DType::kFloat32> {
  using Forward = Widths<32, 64>;
  using Backward = Widths<32, 64>;
  using Associate = Widths<32>;
  using FewChunks = Widths<1, 2>;
};
template <>
struct CompiledWidths<DType::kFloat64> {
  using Forward = Widths<32>;
  using Backward = Widths<16>;
  using Associate = Widths<16>;
  using FewChunks = Widths<4>;
};

// A kernel that would have come first, and why it does not run.
struct Refusal {
  const char* kernel;
  std::string reason;
};

enum class ForwardKernel { kFewQueries, kTiles };

struct ForwardPlan {
  ForwardKernel kernel;
  std::vector<Refusal> refused;
  Tiling tiling;   // of kTiles
  FewTiling few;   // of kFewQueries
  int num_shares;  // that the keys of a row are cut into, and merged again if more than 1
  bool is_queued;  // tiles come from a queue, of kTiles
  bool in_tf32;    // products of floats, of kTiles

  const char* name(DType dtype) const;
  size_t workspace_bytes(const AttentionProblem& p) const;
};

enum class BackwardKernel { kFewQueries, kShort, kPasses };

struct BackwardPlan {
  BackwardKernel kernel;
  std::vector<Refusal> refused;
  BackwardTiling tiling;  // of kShort and kPasses, and of the pass over terms
  FewTiling few;
  int num_shares;  // that the keys of a row are cut into: of kFewQueries, and of kPasses for dQ
  bool is_queued;  // of kPasses
  bool in_tf32;    // of kPasses

  const char* name(DType dtype) const;
  size_t workspace_bytes(const AttentionProblem& p) const;
};

// plain: see scores_are_plain.
ForwardPlan forward_plan(const AttentionProblem& p, bool plain, const Device& device);

// exact: gradients of biases, sinks or weights are asked for; see BackwardProblem::exact_delta.
BackwardPlan backward_plan(const AttentionProblem& p, const AttentionBackward& g, bool plain,
                           bool exact, const Device& device);

Tiling associate_tiling(const AttentionProblem& p, const Device& device);

// Why no kernel takes problems of this kind; empty if one does.
std::string attention_refusal(const AttentionProblem& p);

}  // namespace crossmodal::cuda
