#include "cuda/attention.h"

#include <algorithm>
#include <stdexcept>

#include "cuda/attention_launch.h"
#include "cuda/engine.h"
#include "cuda/launch.h"
#include "cuda/plain_scores.h"

namespace crossmodal::cuda {
namespace {

// What the pass over keys can hold in 99 KB of shared memory, the least that a device since sm_80
// has, with rows of 16 keys and queries.
constexpr int64_t most_head_dim(DType dtype) { return dtype == DType::kFloat64 ? 192 : 256; }

// Calls fn(engine, width) with the smallest width that holds a row, or the largest there is.
template <class Engine, int kFirst, int... kRest, class Fn>
void with_width(int64_t columns, Fn fn) {
  if constexpr (sizeof...(kRest) == 0) {
    fn(Engine{}, std::integral_constant<int, kFirst>{});
  } else {
    if (columns <= kFirst) return fn(Engine{}, std::integral_constant<int, kFirst>{});
    with_width<Engine, kRest...>(columns, fn);
  }
}

// The engines and widths that forward is compiled for: attention_fwd/*.cu.
template <class Fn>
void with_forward_kernel(DType dtype, int64_t columns, Fn fn) {
  switch (dtype) {
    case DType::kBFloat16:
      return with_width<MmaEngine<BFloat16>, 32, 64, 96, 128>(columns, fn);
    case DType::kFloat16:
      return with_width<MmaEngine<Float16>, 32, 64, 96, 128>(columns, fn);
    case DType::kFloat32:
      return with_width<FmaEngine<float>, 32, 64>(columns, fn);
    case DType::kFloat64:
      return with_width<FmaEngine<double>, 32>(columns, fn);
  }
}

size_t forward_shared_bytes(const AttentionProblem& p, const Tiling& t) {
  const size_t size = size_of(p.dtype), block_n = forward_block_n(size);
  size_t rows = t.panels * t.block_m + t.stages * (t.panels + 1) * block_n;
  if (t.panels == 0) rows += t.block_m;  // the output passes through memory of its own
  const size_t accumulator = p.dtype == DType::kFloat64 ? 8 : 4;
  const size_t mass = p.mass ? t.block_m * p.num_sources * 2 * accumulator : 0;
  return rows * t.width * size + mass + t.stages * block_n;  // and a flag for each key
}

// Those that backward is compiled for: attention_bwd/*.cu.
template <class Fn>
void with_backward_kernel(DType dtype, int64_t columns, Fn fn) {
  switch (dtype) {
    case DType::kBFloat16:
      return with_width<MmaEngine<BFloat16>, 32, 64, 128>(columns, fn);
    case DType::kFloat16:
      return with_width<MmaEngine<Float16>, 32, 64, 128>(columns, fn);
    case DType::kFloat32:
      return with_width<FmaEngine<float>, 32, 64>(columns, fn);
    case DType::kFloat64:
      return with_width<FmaEngine<double>, 16>(columns, fn);
  }
}

// Those of short problems' backward, attention_bwd_short/*.cu. Elsewhere it is the arithmetic that
// takes the time, or rows are too wide for both passes in the registers of one kernel.
constexpr int kMostShortWidth = 64;
template <class Fn>
void with_short_kernel(DType dtype, int64_t columns, Fn fn) {
  if (dtype == DType::kBFloat16) return with_width<MmaEngine<BFloat16>, 32, 64>(columns, fn);
  with_width<MmaEngine<Float16>, 32, 64>(columns, fn);
}

// Those of associate: associate/*.cu. Nothing is summed along features, so that one width will do.
template <class Fn>
void with_associate_kernel(DType dtype, Fn fn) {
  switch (dtype) {
    case DType::kBFloat16:
      return with_width<MmaEngine<BFloat16>, 64>(0, fn);
    case DType::kFloat16:
      return with_width<MmaEngine<Float16>, 64>(0, fn);
    case DType::kFloat32:
      return with_width<FmaEngine<float>, 32>(0, fn);
    case DType::kFloat64:
      return with_width<FmaEngine<double>, 16>(0, fn);
  }
}

// Blocks of equal height, as few as hold all queries.
int fewest_warps(int64_t seqlen_q) {
  const int64_t tiles = std::max<int64_t>(1, ceil_div(seqlen_q, kWarpRows));
  return static_cast<int>(ceil_div(tiles, ceil_div(tiles, kMostWarps)));
}

// The first of these that fits the device: full blocks with loads behind products, then less.
template <class SharedBytes>
Tiling fitting(Tiling t, int most_warps, SharedBytes shared_bytes) {
  const size_t most = most_shared_bytes();
  for (int warps = most_warps;; warps = (warps + 1) / 2) {
    for (const int stages : {2, 1}) {
      t.warps = warps;
      t.block_m = warps * kWarpRows;
      t.stages = stages;
      t.shared_bytes = shared_bytes(t);
      if (t.shared_bytes <= most) return t;
    }
    if (warps == 1) return t;  // does not fit: the launch will say so
  }
}

Tiling forward_tiling(const AttentionProblem& p, int width) {
  Tiling t{};
  t.width = width;
  t.panels = static_cast<int>(ceil_div(p.head_dim, width));
  t.chunks = static_cast<int>(std::max<int64_t>(1, ceil_div(p.head_dim_v, width)));
  return fitting(t, fewest_warps(p.seqlen_q),
                 [&](const Tiling& tiling) { return forward_shared_bytes(p, tiling); });
}

// together: as many warps in the first two passes, that one kernel may run both.
BackwardTiling backward_tiling(const AttentionProblem& p, int width, bool together) {
  const size_t size = size_of(p.dtype), block = backward_block(size), row = width * size;
  Tiling t{};
  t.width = width;
  t.panels = static_cast<int>(ceil_div(p.head_dim, width));
  t.panels_v = static_cast<int>(ceil_div(p.head_dim_v, width));
  const size_t features = std::max(1, t.panels), values = std::max(1, t.panels_v);

  BackwardTiling tiling{t, t, t};
  tiling.queries.chunks = static_cast<int>(features);
  int64_t longest = 1;
  for (int s = 0; s < p.num_sources; ++s) longest = std::max(longest, p.sources[s].seqlen_k);
  const int for_queries = fewest_warps(p.seqlen_q), for_keys = fewest_warps(longest);
  const int for_both = std::max(for_queries, for_keys);
  tiling.queries = fitting(tiling.queries, together ? for_both : for_queries, [&](const Tiling& q) {
    return (features + q.panels_v) * (q.block_m + q.stages * block) * row + q.stages * block;
  });
  tiling.keys.chunks = static_cast<int>(std::max(features, values));
  const size_t state = 4 * (p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
  const size_t block_q = key_pass_block(size, width);
  tiling.keys = fitting(tiling.keys, together ? for_both : for_keys, [&](const Tiling& k) {
    return (features + values) * k.block_m * row +
           k.stages * block_q * ((k.panels + k.panels_v) * row + state) + k.block_m;
  });
  tiling.terms.chunks = 1;
  tiling.terms = fitting(tiling.terms, fewest_warps(p.seqlen_q), [&](const Tiling& m) {
    return (m.panels + m.panels_v) * (m.block_m + block) * row + block;
  });
  return tiling;
}

// One block to a (batch, head) pays where those fill the device and what a block reads stays in the
// second-level cache until it is read again.
bool is_short(const AttentionProblem& p, const AttentionBackward& g, const BackwardTiling& tiling) {
  constexpr int64_t kMostQueries = 256, kMostKeys = 512, kPairsToFill = 4;
  bool shared_heads = false;
  for (int s = 0; s < p.num_sources; ++s) shared_heads |= p.sources[s].num_heads_k != p.num_heads;
  return scores_are_plain(p) && !g.associate && size_of(p.dtype) == 2 &&
         std::max(p.head_dim, p.head_dim_v) <= kMostShortWidth && p.seqlen_q <= kMostQueries &&
         p.total_keys <= kMostKeys && !shared_heads && tiling.queries.warps == tiling.keys.warps &&
         p.batch * p.num_heads >= kPairsToFill * multiprocessors();
}

Tiling associate_tiling(const AttentionProblem& p, int width) {
  const size_t size = size_of(p.dtype), block = backward_block(size);
  const size_t accumulator = p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  Tiling t{};
  t.width = width;
  t.panels = static_cast<int>(ceil_div(p.head_dim, width));
  t.chunks = 1;
  return fitting(t, fewest_warps(p.seqlen_q), [&](const Tiling& m) {
    const size_t walk =
        m.panels * (m.block_m + block) * width * size + m.block_m * block * accumulator + block;
    return std::max(walk, m.warps * block * sizeof(double));  // sums of warps take its place
  });
}

}  // namespace

std::string attention_refusal(const AttentionProblem& p) {
  const auto more = [](const char* what, int64_t came, int64_t most) {
    return std::string(what) + " " + std::to_string(came) + " is more than " + std::to_string(most);
  };
  const int64_t most = most_head_dim(p.dtype);
  if (p.head_dim > most) return more("head_dim", p.head_dim, most);
  if (p.head_dim_v > most) return more("head_dim of values", p.head_dim_v, most);
  if (p.num_sources > kMostSources)
    return more("a number of sources of", p.num_sources, kMostSources);
  if (p.seqlen_q > kMostRows) return more("a number of queries of", p.seqlen_q, kMostRows);
  if (p.total_keys > kMostRows) return more("a number of keys of", p.total_keys, kMostRows);
  return "";
}

static void check_supported(const AttentionProblem& p) {
  const std::string refusal = attention_refusal(p);
  if (!refusal.empty()) throw std::invalid_argument("attention: " + refusal);
}

static void forward(const AttentionProblem& p, bool plain, void* stream) {
  const int64_t columns = std::max(p.head_dim, p.head_dim_v);
  with_forward_kernel(p.dtype, columns, [&](auto engine, auto width) {
    launch_attention_fwd<decltype(engine), width()>(p, plain, forward_tiling(p, width()), stream);
  });
}

void attention_fwd(const AttentionProblem& p, void* stream) {
  check_supported(p);
  if (p.batch * p.num_heads * p.seqlen_q == 0) return;
  forward(p, scores_are_plain(p), stream);
}

void attention_bwd(const AttentionProblem& p, const AttentionBackward& g,
                   const BackwardWorkspace& workspace, void* stream) {
  check_supported(p);
  if (p.batch * p.num_heads == 0) return;
  const int64_t columns = std::max(p.head_dim, p.head_dim_v);
  with_backward_kernel(p.dtype, columns, [&](auto engine, auto width) {
    using Engine = decltype(engine);
    const BackwardTiling together = backward_tiling(p, width(), true);
    const BackwardTiling apart = backward_tiling(p, width(), false);
    if (is_short(p, g, together)) {
      with_short_kernel(p.dtype, columns, [&](auto short_engine, auto short_width) {
        launch_attention_bwd_short<decltype(short_engine), short_width()>(p, g, workspace, together,
                                                                          stream);
      });
    } else {
      launch_attention_bwd<Engine, width()>(p, g, workspace, apart, stream);
    }
    launch_attention_bwd_terms<Engine, width()>(p, g, workspace, apart.terms, stream);
  });
}

void associate(const AttentionProblem& p, const AssociateProblem& request, size_t weights_bytes,
               void* stream) {
  check_supported(p);
  if (p.batch * p.num_heads * p.seqlen_q == 0) return;
  forward(p, false, stream);
  // Keys that are not there have no block of their own.
  check(cudaMemsetAsync(request.weights, 0, weights_bytes, static_cast<cudaStream_t>(stream)),
        "associate");
  with_associate_kernel(p.dtype, [&](auto engine, auto width) {
    launch_associate<decltype(engine), width()>(p, request, associate_tiling(p, width()), stream);
  });
}

}  // namespace crossmodal::cuda
