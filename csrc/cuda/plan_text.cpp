// The kernels that a problem would get on a GPU, told to people: crossmodal_cuda_attention_plan().
#include <sstream>
#include <string>

#include "core/introspection.h"
#include "cuda/plain_scores.h"
#include "cuda/plan.h"

namespace crossmodal::cuda {
namespace {

std::string as_json(const std::vector<Refusal>& refused) {
  std::string text = "[";
  for (const Refusal& refusal : refused) {
    if (text.size() > 1) text += ", ";
    text += std::string("{\"kernel\": \"") + refusal.kernel + "\", \"reason\": \"" +
            refusal.reason + "\"}";
  }
  return text + "]";
}

const char* order_of(bool is_queued) { return is_queued ? "queue, most work first" : "in turn"; }

void write_few(std::ostringstream& json, const FewTiling& few, int unroll) {
  json << ", \"rows_at_once\": " << few.rows_at_once << ", \"lanes_to_a_row\": " << few.lanes()
       << ", \"warps_to_a_row\": " << few.warps
       << ", \"block_n\": " << (32 >> few.log_lanes) * unroll * few.warps;
}

void write_blocks(std::ostringstream& json, const Tiling& tiling, int block_n) {
  json << ", \"block_m\": " << tiling.block_m << ", \"block_n\": " << block_n
       << ", \"stages\": " << tiling.stages << ", \"shared_bytes\": " << tiling.shared_bytes;
}

std::string as_json(const AttentionProblem& p, const ForwardPlan& plan, bool plain) {
  std::ostringstream json;
  json << "{\"kernel\": \"" << plan.name(p.dtype) << "\", \"shares\": " << plan.num_shares;
  if (plan.kernel == ForwardKernel::kFewQueries) {
    write_few(json, plan.few, few_unroll(plan.few.chunks));
  } else {
    json << ", \"order\": \"" << order_of(plan.is_queued) << "\"";
    write_blocks(json, plan.tiling, forward_block_n(size_of(p.dtype), plan.tiling.width, plain));
  }
  json << ", \"refused\": " << as_json(plan.refused) << "}";
  return json.str();
}

std::string as_json(const AttentionProblem& p, const BackwardPlan& plan) {
  std::ostringstream json;
  json << "{\"kernel\": \"" << plan.name(p.dtype) << "\", \"shares\": " << plan.num_shares;
  if (plan.kernel == BackwardKernel::kFewQueries) {
    const FewTiling& few = plan.few;
    write_few(
        json, few,
        few.warps == 1 ? kOneBackwardUnroll : few_backward_unroll(few.chunks, few.rows_at_once));
  } else {
    json << ", \"order\": \"" << order_of(plan.is_queued) << "\"";
    write_blocks(json, plan.tiling.queries, backward_block(size_of(p.dtype)));
  }
  json << ", \"refused\": " << as_json(plan.refused) << "}";
  return json.str();
}

}  // namespace
}  // namespace crossmodal::cuda

extern "C" const char* crossmodal_cuda_attention_plan(int dtype, int64_t batch, int64_t num_heads,
                                                      int64_t num_heads_k, int64_t seqlen_q,
                                                      int64_t seqlen_k, int64_t head_dim,
                                                      int64_t head_dim_v, int is_plain,
                                                      int is_exact, int is_ragged, int allow_tf32,
                                                      int arch, int multiprocessors,
                                                      int64_t shared_bytes, int64_t l2_bytes) {
  using namespace crossmodal;
  using namespace crossmodal::cuda;
  static thread_local std::string text;
  KeySource sources[2] = {};
  sources[0].num_heads_k = num_heads_k ? num_heads_k : num_heads;
  sources[0].seqlen_k = seqlen_k;
  sources[1].num_heads_k = 1;
  if (is_ragged) sources[0].lengths = sources;  // whatever they are
  AttentionProblem p{};
  p.sources = sources;
  p.num_sources = num_heads_k ? 1 : 2;
  p.batch = batch;
  p.num_heads = num_heads;
  p.seqlen_q = seqlen_q;
  p.head_dim = head_dim;
  p.head_dim_v = head_dim_v;
  p.total_keys = seqlen_k;
  p.window_left = p.window_right = -1;
  p.dtype = static_cast<DType>(dtype);
  p.allow_tf32 = allow_tf32;
  is_plain = is_plain && rows_may_be_plain(p);
  const Device device = {arch, multiprocessors, static_cast<size_t>(shared_bytes), l2_bytes};
  text = "{\"forward\": " + as_json(p, forward_plan(p, is_plain, device), is_plain) +
         ", \"backward\": " +
         as_json(p, backward_plan(p, {}, is_plain && !is_exact, is_exact, device)) + "}";
  return text.c_str();
}
