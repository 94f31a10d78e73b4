// The kernel that a problem would get, told to people: crossmodal_attention_plan().
#include <algorithm>
#include <sstream>
#include <string>

#include "core/introspection.h"
#include "cpu/kernels.h"

using crossmodal::DType;

static const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kFloat64:
      return "float64";
  }
  return "unknown";
}

extern "C" const char* crossmodal_attention_plan(int dtype, int64_t batch, int64_t num_heads,
                                                 int64_t seqlen_q, int64_t seqlen_k,
                                                 int64_t head_dim, int64_t head_dim_v,
                                                 int is_causal) {
  using namespace crossmodal::cpu;
  static thread_local std::string text;
  const DType type = static_cast<DType>(dtype);
  const Isa active = active_isa();
  const DTypeKernels& kernels = kernels_for(active, type);

  std::ostringstream json;
  json << "{\"dtype\": \"" << dtype_name(type) << "\", \"refused\": [";
  const char* separator = "";
  const char* chosen = "portable";
  for (const IsaEntry& entry : kIsaTable) {
    if (entry.isa == active) chosen = entry.name;
    if (entry.isa <= active) continue;
    const char* reason = !entry.compiled      ? "not compiled into this library"
                         : !entry.supported() ? "this CPU does not have it"
                                              : "another instruction set was asked for";
    json << separator << "{\"kernel\": \"" << entry.name << "\", \"reason\": \"" << reason << "\"}";
    separator = ", ";
  }
  const double flops =
      2.0 * batch * num_heads * seqlen_q * seqlen_k * (head_dim + head_dim_v) / (is_causal ? 2 : 1);
  json << "], \"kernel\": \"" << chosen << "\", \"multiply\": \"" << kernels.multiply
       << "\", \"lanes\": " << kernels.lanes << ", \"tile\": [" << kernels.tile_rows << ", "
       << kernels.tile_vectors * kernels.lanes
       << "], \"block_m\": " << std::min<int64_t>(kernels.block_m, seqlen_q)
       << ", \"block_n\": " << std::min<int64_t>(kernels.block_n, seqlen_k)
       << ", \"gflop\": " << flops / 1e9 << "}";
  text = json.str();
  return text.c_str();
}
