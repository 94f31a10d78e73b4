#include "cuda/attention.h"

#include <algorithm>
#include <stdexcept>

#include "cuda/attention_launch.h"
#include "cuda/engine.h"
#include "cuda/launch.h"
#include "cuda/plain_scores.h"
#include "cuda/plan.h"
#include "cuda/row_shares.h"
#include "cuda/tile_queue.h"

namespace crossmodal::cuda {
namespace {

Device current_device() {
  return {10 * device_attribute(cudaDevAttrComputeCapabilityMajor) +
              device_attribute(cudaDevAttrComputeCapabilityMinor),
          device_attribute(cudaDevAttrMultiProcessorCount),
          static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)),
          device_attribute(cudaDevAttrL2CacheSize)};
}

// fn(engine, CompiledWidths<the dtype>{}).
template <class Fn>
void with_engine(DType dtype, Fn fn) {
  switch (dtype) {
    case DType::kBFloat16:
      return fn(MmaEngine<BFloat16>{}, CompiledWidths<DType::kBFloat16>{});
    case DType::kFloat16:
      return fn(MmaEngine<Float16>{}, CompiledWidths<DType::kFloat16>{});
    case DType::kFloat32:
      return fn(FmaEngine<float>{}, CompiledWidths<DType::kFloat32>{});
    case DType::kFloat64:
      return fn(FmaEngine<double>{}, CompiledWidths<DType::kFloat64>{});
  }
}

// The same for kernels that walk tiles.
template <class Fn>
void with_tile_engine(DType dtype, bool in_tf32, Fn fn) {
  if (in_tf32) return fn(Tf32Engine{}, CompiledWidths<DType::kFloat32>{});
  with_engine(dtype, fn);
}

// fn(width) of one of the widths, known to the compiler.
template <int... kWidths, class Fn>
void with_width(Widths<kWidths...>, int width, Fn fn) {
  (void)((width == kWidths && (fn(std::integral_constant<int, kWidths>{}), true)) || ...);
}

void check_supported(const AttentionProblem& p) {
  const std::string refusal = attention_refusal(p);
  if (!refusal.empty()) throw std::invalid_argument("attention: " + refusal);
}

void forward(const AttentionProblem& p, bool plain, void* workspace, void* stream) {
  const ForwardPlan plan = forward_plan(p, plain, current_device());
  const RowShares shares = {workspace, plan.num_shares};
  const TileQueue queue = {plan.is_queued ? static_cast<int32_t*>(workspace) : nullptr,
                           static_cast<int>(p.batch)};
  if (plan.kernel == ForwardKernel::kTiles)
    with_tile_engine(p.dtype, plan.in_tf32, [&](auto engine, auto widths) {
      with_width(typename decltype(widths)::Forward{}, plan.tiling.width, [&](auto width) {
        launch_attention_fwd<decltype(engine), width()>(p, plain, plan.tiling, shares, queue,
                                                        stream);
      });
    });
  with_engine(p.dtype, [&](auto engine, auto widths) {
    using Engine = decltype(engine);
    if (plan.kernel == ForwardKernel::kFewQueries)
      with_width(typename decltype(widths)::FewChunks{}, plan.few.chunks, [&](auto chunks) {
        launch_attention_few_fwd<Engine, chunks()>(p, plain, plan.few, shares, stream);
      });
    if (shares.count > 1) launch_merge_rows<Engine>(p, plain, shares, stream);
  });
}

}  // namespace

// Asked before anything runs: problems that no kernel takes end here.
size_t attention_fwd_workspace(const AttentionProblem& p) {
  check_supported(p);
  return forward_plan(p, scores_are_plain(p), current_device()).workspace_bytes(p);
}

void attention_fwd(const AttentionProblem& p, void* workspace, void* stream) {
  if (p.batch * p.num_heads * p.seqlen_q == 0) return;
  forward(p, scores_are_plain(p), workspace, stream);
}

static BackwardPlan plan_of(const BackwardProblem& p) {
  BackwardPlan plan = backward_plan(p, p.gradient, scores_are_plain(p) && !p.gradient.associate,
                                    p.exact_delta, current_device());
  // Shares of its keys are shares of dQ.
  if (plan.kernel == BackwardKernel::kPasses && !p.gradient.dq) plan.num_shares = 1;
  return plan;
}

size_t attention_bwd_workspace(const AttentionProblem& p, const AttentionBackward& g,
                               const BackwardWorkspace& workspace) {
  check_supported(p);
  BackwardProblem problem = as_parameter(p, g, workspace);
  problem.sources = p.sources;
  return plan_of(problem).workspace_bytes(p);
}

void attention_bwd(const AttentionProblem& p, const AttentionBackward& g,
                   const BackwardWorkspace& workspace, void* stream) {
  if (p.batch * p.num_heads == 0) return;
  BackwardProblem problem = as_parameter(p, g, workspace);
  problem.sources = p.sources;
  const BackwardPlan plan = plan_of(problem);
  if (plan.kernel == BackwardKernel::kFewQueries)
    return with_engine(p.dtype, [&](auto engine, auto widths) {
      with_width(typename decltype(widths)::FewChunks{}, plan.few.chunks, [&](auto chunks) {
        launch_attention_few_bwd<decltype(engine), chunks()>(p, g, workspace, plan.few,
                                                             plan.num_shares, stream);
      });
    });
  with_tile_engine(p.dtype, plan.in_tf32, [&](auto engine, auto widths) {
    using Engine = decltype(engine);
    using Compiled = decltype(widths);
    if constexpr (sizeof(typename Engine::Element) == 2) {
      if (plan.kernel == BackwardKernel::kShort)
        with_width(typename Compiled::Short{}, plan.tiling.queries.width, [&](auto width) {
          launch_attention_bwd_short<Engine, width()>(p, g, workspace, plan.tiling, plan.few.heads,
                                                      stream);
        });
    }
    with_width(typename Compiled::Backward{}, plan.tiling.queries.width, [&](auto width) {
      if (plan.kernel == BackwardKernel::kPasses)
        launch_attention_bwd<Engine, width()>(p, g, workspace, plan.tiling, plan.num_shares,
                                              plan.is_queued, stream);
      // It reads the delta that either has left.
      launch_attention_bwd_terms<Engine, width()>(p, g, workspace, plan.tiling.terms, stream);
    });
  });
}

void associate(const AttentionProblem& p, const AssociateProblem& request, size_t weights_bytes,
               void* workspace, void* stream) {
  if (p.batch * p.num_heads * p.seqlen_q == 0) return;
  forward(p, false, workspace, stream);
  // Keys that are not there have no block of their own.
  check(cudaMemsetAsync(request.weights, 0, weights_bytes, static_cast<cudaStream_t>(stream)),
        "associate");
  const Tiling tiling = associate_tiling(p, current_device());
  with_engine(p.dtype, [&](auto engine, auto widths) {
    with_width(typename decltype(widths)::Associate{}, tiling.width, [&](auto width) {
      launch_associate<decltype(engine), width()>(p, request, tiling, stream);
    });
  });
}

size_t associate_workspace(const AttentionProblem& p) {
  check_supported(p);
  return forward_plan(p, false, current_device()).workspace_bytes(p);
}

}  // namespace crossmodal::cuda
