#include "cuda/plan.h"

#include <algorithm>
#include <initializer_list>

#include "cuda/alignment.h"
#include "cuda/problem.h"

namespace crossmodal::cuda {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the pass over keys can hold in 99 KB of shared memory, the least that a device since sm_80
// has, with 16 keys and, of doubles, 8 queries.
constexpr int64_t kMostHeadDim = 256;

size_t accumulator_size(DType dtype) { return dtype == DType::kFloat64 ? 8 : 4; }

// fn(CompiledWidths<the dtype>{}).
template <class Fn>
auto with_widths(DType dtype, Fn fn) {
  switch (dtype) {
    case DType::kFloat32:
      return fn(CompiledWidths<DType::kFloat32>{});
    case DType::kFloat64:
      return fn(CompiledWidths<DType::kFloat64>{});
    default:
      return fn(CompiledWidths<DType::kBFloat16>{});
  }
}

int64_t columns_of(const AttentionProblem& p) { return std::max(p.head_dim, p.head_dim_v); }

std::string more(const char* what, int64_t came, int64_t most) {
  return std::string(what) + " " + std::to_string(came) + " is more than " + std::to_string(most);
}

// -- tiles ---------------------------------------------------------------------------------------

// Blocks of equal height, as few as hold all queries.
int fewest_warps(int64_t seqlen_q) {
  const int64_t tiles = std::max<int64_t>(1, ceil_div(seqlen_q, kWarpRows));
  return static_cast<int>(ceil_div(tiles, ceil_div(tiles, kMostWarps)));
}

// The first of these that fits the device: full blocks with loads behind products, then less.
template <class SharedBytes>
Tiling fitting(Tiling t, int most_warps, const Device& device, SharedBytes shared_bytes) {
  for (int warps = most_warps;; warps = (warps + 1) / 2) {
    for (const int stages : {2, 1}) {
      t.warps = warps;
      t.block_m = warps * kWarpRows;
      t.stages = stages;
      t.shared_bytes = ceil_div(shared_bytes(t), kSlotBytes) * kSlotBytes + kSlotBytes;
      if (t.shared_bytes <= device.shared_bytes) return t;
    }
    if (warps == 1) return t;  // does not fit: the launch will say so
  }
}

size_t forward_shared_bytes(const AttentionProblem& p, bool plain, const Tiling& t) {
  const size_t size = size_of(p.dtype), block_n = forward_block_n(size, t.width, plain);
  size_t rows = t.panels * t.block_m + t.stages * (t.panels + 1) * block_n;
  if (t.panels == 0) rows += t.block_m;  // the output passes through memory of its own
  const size_t mass = p.mass ? t.block_m * p.num_sources * 2 * accumulator_size(p.dtype) : 0;
  return rows * t.width * size + mass + t.stages * block_n;  // and a flag for each key
}

Tiling forward_tiling(const AttentionProblem& p, bool plain, const Device& device) {
  Tiling t{};
  t.width =
      with_widths(p.dtype, [&](auto w) { return decltype(w)::Forward::holding(columns_of(p)); });
  t.panels = static_cast<int>(ceil_div(p.head_dim, t.width));
  t.chunks = static_cast<int>(std::max<int64_t>(1, ceil_div(p.head_dim_v, t.width)));
  return fitting(t, fewest_warps(p.seqlen_q), device,
                 [&](const Tiling& tiling) { return forward_shared_bytes(p, plain, tiling); });
}

// together: as many warps in the first two passes, that one kernel may run both.
BackwardTiling backward_tiling(const AttentionProblem& p, const Device& device, bool together) {
  Tiling t{};
  t.width =
      with_widths(p.dtype, [&](auto w) { return decltype(w)::Backward::holding(columns_of(p)); });
  const size_t size = size_of(p.dtype), block = backward_block(size), row = t.width * size;
  t.panels = static_cast<int>(ceil_div(p.head_dim, t.width));
  t.panels_v = static_cast<int>(ceil_div(p.head_dim_v, t.width));
  const size_t features = std::max(1, t.panels), values = std::max(1, t.panels_v);

  BackwardTiling tiling{t, t, t};
  tiling.queries.chunks = static_cast<int>(features);
  int64_t longest = 1;
  for (int s = 0; s < p.num_sources; ++s) longest = std::max(longest, p.sources[s].seqlen_k);
  const int for_queries = fewest_warps(p.seqlen_q), for_keys = fewest_warps(longest);
  const int for_both = std::max(for_queries, for_keys);
  tiling.queries =
      fitting(tiling.queries, together ? for_both : for_queries, device, [&](const Tiling& q) {
        return (features + q.panels_v) * (q.block_m + q.stages * block) * row + q.stages * block;
      });
  tiling.keys.chunks = static_cast<int>(std::max(features, values));
  const size_t state = 4 * accumulator_size(p.dtype);
  const size_t block_q = key_pass_block(size, t.width);
  tiling.keys = fitting(tiling.keys, together ? for_both : for_keys, device, [&](const Tiling& k) {
    return (features + values) * k.block_m * row +
           k.stages * block_q * ((k.panels + k.panels_v) * row + state) + k.block_m;
  });
  tiling.terms.chunks = 1;
  tiling.terms = fitting(tiling.terms, fewest_warps(p.seqlen_q), device, [&](const Tiling& m) {
    return (m.panels + m.panels_v) * (m.block_m + block) * row + block;
  });
  return tiling;
}

// Query heads to a key head where that is one number for all sources, else 1.
int heads_together(const AttentionProblem& p) {
  for (int s = 1; s < p.num_sources; ++s)
    if (p.sources[s].num_heads_k != p.sources[0].num_heads_k) return 1;
  const int64_t shared_by = p.num_sources == 0 ? 0 : p.sources[0].num_heads_k;
  // Without a head there is nothing to divide.
  return shared_by == 0 ? 1 : static_cast<int>(p.num_heads / shared_by);
}

// Whether that many query heads share each head of keys of every source.
bool shared_alike(const AttentionProblem& p, int group) {
  for (int s = 0; s < p.num_sources; ++s)
    if (p.sources[s].num_heads_k * group != p.num_heads) return false;
  return true;
}

FewTiling few_tiling(const AttentionProblem& p) {
  FewTiling t{};
  const int64_t row_chunks =
      std::max<int64_t>(1, ceil_div(columns_of(p) * static_cast<int64_t>(size_of(p.dtype)), 16));
  t.chunks = with_widths(
      p.dtype, [&](auto w) { return decltype(w)::FewChunks::holding(ceil_div(row_chunks, 32)); });
  while (t.lanes() * t.chunks < row_chunks) ++t.log_lanes;
  t.heads = heads_together(p);
  t.rows = static_cast<int>(t.heads * p.seqlen_q);
  t.rows_at_once = t.rows == 1 ? 1 : few_rows(size_of(p.dtype));
  t.warps = kFewWarps;
  return t;
}

bool fit_one_instruction(std::initializer_list<int64_t> strides, DType dtype) {
  constexpr int64_t kMost = (int64_t{1} << 31) - 1;
  const int64_t size = size_of(dtype);
  return std::all_of(strides.begin(), strides.end(), [&](int64_t x) { return x * size <= kMost; });
}

// Whether each query gets a warp to itself: there are enough of them to fill the device, and their
// problem is as simple as one_query.h takes it.
bool is_one_query_to_a_warp(const AttentionProblem& p, bool plain, const FewTiling& t,
                            const Alignment& alignment, const Device& device) {
  constexpr int64_t kWarpsToFill = 8;  // to a multiprocessor: 32 KB of keys and values under way
  const int64_t pairs = p.batch * p.num_heads, row_bytes = 16 * t.lanes();
  const int64_t size = size_of(p.dtype);
  const bool is_whole = t.chunks == 1 && t.lanes() >= kFewestLanes &&
                        p.head_dim * size == row_bytes && p.head_dim_v * size == row_bytes;
  const bool fills = pairs >= kWarpsToFill * device.multiprocessors && pairs <= kMostRows;
  bool is_padded = !p.cu_seqlens_q, is_near = true;
  for (int s = 0; s < p.num_sources; ++s) {
    const KeySource& source = p.sources[s];
    is_padded &= !source.cu_seqlens;
    is_near &= fit_one_instruction(
        {source.k_stride[2], source.v_stride[2], source.dk_stride[2], source.dv_stride[2]},
        p.dtype);
  }
  const bool is_open = p.window_left < 0 && p.window_right < 0;
  return plain && t.rows == 1 && is_whole && fills && is_padded && is_near && is_open &&
         alignment.every();
}

// -- shares of keys ------------------------------------------------------------------------------

// Blocks of block_n keys that a tile of block_m queries walks at most.
int64_t blocks_to_walk(const AttentionProblem& p, int64_t block_m, int64_t block_n) {
  int64_t keys = p.total_keys;
  if (p.window_left >= 0 && p.window_right >= 0)
    keys = std::min(keys, p.window_left + p.window_right + block_m);
  return ceil_div(keys, block_n);
}

// As many as fill the device where `tiles` leave most of it idle, as few as leave each share a few
// blocks of keys: what they find is written and read once more.
int shares_that_fill(int64_t tiles, int64_t blocks, int64_t fewest_blocks, int64_t tiles_to_fill) {
  constexpr int64_t kMostShares = 32;
  if (tiles == 0 || 2 * tiles > tiles_to_fill) return 1;
  const int64_t wanted = std::min(tiles_to_fill / tiles, blocks / fewest_blocks);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, kMostShares));
}

int few_shares(const AttentionProblem& p, const FewTiling& t, const Device& device) {
  constexpr int64_t kBlocksToFill = 4;  // to a multiprocessor
  const int64_t tiles = p.batch * (p.num_heads / t.heads) * t.tiles();
  const int64_t block_n = 32 / t.lanes() * few_unroll(t.chunks) * kFewWarps;
  return shares_that_fill(tiles, blocks_to_walk(p, p.seqlen_q, block_n), 2,
                          kBlocksToFill * device.multiprocessors);
}

// -- queues --------------------------------------------------------------------------------------

bool is_ragged(const AttentionProblem& p) {
  bool ragged = p.cu_seqlens_q || p.query_lengths;
  for (int s = 0; s < p.num_sources; ++s) ragged |= p.sources[s].cu_seqlens || p.sources[s].lengths;
  return ragged;
}

// Which tile comes first matters where the device does not hold all of them at once.
bool queue_pays(const AttentionProblem& p, int64_t entries, int64_t tiles, const Device& device) {
  constexpr int64_t kBlocksAtOnce = 2, kMostTiles = 1 << 30;
  return is_ragged(p) && p.batch > 1 && entries > 0 && entries <= kMostQueueEntries &&
         tiles <= kMostTiles && tiles > kBlocksAtOnce * device.multiprocessors;
}

// -- the kernels, best first, and what keeps each from a problem
// -----------------------------------

constexpr char kFewName[] = "sm80_few_queries";
constexpr char kShortName[] = "sm80_mma_short";

constexpr char kTf32Name[] = "sm80_mma_tf32";

const char* tiles_name(DType dtype, bool in_tf32) {
  if (in_tf32) return kTf32Name;
  return size_of(dtype) == 2 ? "sm80_mma" : "sm80_fma";
}

// Asked where tiles take a problem.
template <class Plan>
void choose_tf32(const AttentionProblem& p, Plan* plan) {
  if (p.dtype != DType::kFloat32) return;
  plan->in_tf32 = p.allow_tf32;
  if (!plan->in_tf32)
    plan->refused.push_back(
        {kTf32Name,
         "torch.backends.cuda.matmul.fp32_precision is not 'tf32', or it is no product "
         "that torch would round"});
}

constexpr int64_t kMostFewQueries = 4;

std::string few_refusal(const AttentionProblem& p) {
  if (p.seqlen_q <= kMostFewQueries) return "";
  return more("a number of queries of", p.seqlen_q, kMostFewQueries) +
         ": matrix instructions are worth it";
}

std::string few_backward_refusal(const AttentionProblem& p, const FewTiling& t, bool exact) {
  const std::string refusal = few_refusal(p);
  if (!refusal.empty()) return refusal;
  if (!shared_alike(p, t.heads))
    return "sources differ in heads of keys, so that no block sums over all queries of one";
  if (t.tiles() > 1)
    return "queries of all heads that share a head of keys are " + std::to_string(t.rows) +
           ", more than " + std::to_string(t.rows_at_once) + ", so that no block can sum over them";
  if (exact) return "gradients of biases, sinks and weights need the exact sum of each row first";
  return "";
}

// One block to a sample's head of keys pays where those fill the device and what blocks read, and
// what they write, stays in the second-level cache until it is read again.
std::string short_refusal(const AttentionProblem& p, bool plain, bool exact,
                          const BackwardTiling& tiling, int group, const Device& device) {
  constexpr int64_t kPairsToFill = 4, kMostHeads = 65535;
  if (size_of(p.dtype) != 2) return "multiply-adds, not memory, take the time";
  const bool is_free = plain && !exact;
  const int64_t width = widest_short_backward(is_free);
  if (columns_of(p) > width)
    return more("head_dim", columns_of(p), width) +
           (is_free ? "" : ", with masks, biases, sinks or dropout");
  if (!shared_alike(p, group)) return "sources differ in heads of keys";
  if (p.num_heads / group > kMostHeads)
    return more("a number of heads of", p.num_heads, kMostHeads);
  if (tiling.queries.warps != tiling.keys.warps)
    return "shared memory holds blocks of unequal size";
  const int64_t pairs = p.batch * p.num_heads / group;
  const int64_t enough = kPairsToFill * device.multiprocessors;
  if (pairs < enough)
    return std::to_string(pairs) + " heads of keys of all samples are fewer than " +
           std::to_string(enough) + ", which fill the device";
  const int64_t bytes = (p.seqlen_q * group + p.total_keys) * (p.head_dim + p.head_dim_v) * 2;
  // Up to three blocks to a multiprocessor, and a quarter of the cache for what passes through.
  const int64_t room = device.l2_bytes / (4 * device.multiprocessors);
  if (bytes > room)
    return more("what a block reads,", bytes, room) + " bytes, its share of the second-level cache";
  return "";
}

}  // namespace

const char* ForwardPlan::name(DType dtype) const {
  return kernel == ForwardKernel::kFewQueries ? kFewName : tiles_name(dtype, in_tf32);
}

size_t ForwardPlan::workspace_bytes(const AttentionProblem& p) const {
  if (is_queued) return queue_words(p.batch) * sizeof(int32_t);
  if (num_shares == 1) return 0;
  return num_shares * p.batch * p.num_heads * p.seqlen_q * row_share_size(p) *
         accumulator_size(p.dtype);
}

ForwardPlan forward_plan(const AttentionProblem& p, bool plain, const Device& device) {
  ForwardPlan plan{};
  const std::string few = few_refusal(p);
  if (few.empty()) {
    plan.kernel = ForwardKernel::kFewQueries;
    plan.few = few_tiling(p);
    plan.few.shared_bytes =
        kFewWarps * plan.few.rows_at_once * row_share_size(p) * accumulator_size(p.dtype);
    plan.num_shares = few_shares(p, plan.few, device);
    if (is_one_query_to_a_warp(p, plain, plan.few, Alignment(p), device))
      plan.few.warps = plan.num_shares = 1;
    return plan;
  }
  plan.refused.push_back({kFewName, few});
  plan.kernel = ForwardKernel::kTiles;
  choose_tf32(p, &plan);
  plan.tiling = forward_tiling(p, plain, device);
  const Tiling& t = plan.tiling;
  const int64_t tiles = p.batch * p.num_heads * ceil_div(p.seqlen_q, t.block_m) * t.chunks;
  const int block_n = forward_block_n(size_of(p.dtype), t.width, plain);
  plan.num_shares =
      shares_that_fill(tiles, blocks_to_walk(p, t.block_m, block_n), 2, 2 * device.multiprocessors);
  plan.is_queued = plan.num_shares == 1 && queue_pays(p, p.batch, tiles, device);
  return plan;
}

const char* BackwardPlan::name(DType dtype) const {
  switch (kernel) {
    case BackwardKernel::kFewQueries:
      return kFewName;
    case BackwardKernel::kShort:
      return kShortName;
    default:
      return tiles_name(dtype, in_tf32);
  }
}

size_t BackwardPlan::workspace_bytes(const AttentionProblem& p) const {
  if (is_queued)
    return (queue_words(p.batch) + queue_words(p.batch * p.num_sources)) * sizeof(int32_t);
  if (num_shares == 1) return 0;
  return num_shares * p.batch * p.num_heads * p.seqlen_q * p.head_dim * accumulator_size(p.dtype);
}

BackwardPlan backward_plan(const AttentionProblem& p, const AttentionBackward& g, bool plain,
                           bool exact, const Device& device) {
  BackwardPlan plan{};
  plan.num_shares = 1;
  plan.few = few_tiling(p);
  plan.tiling = backward_tiling(p, device, false);
  const std::string few = few_backward_refusal(p, plan.few, exact);
  if (few.empty()) {
    plan.kernel = BackwardKernel::kFewQueries;
    plan.few.shared_bytes =
        kFewWarps * plan.few.rows_at_once * p.head_dim * accumulator_size(p.dtype);
    plan.num_shares = few_shares(p, plan.few, device);
    if (is_one_query_to_a_warp(p, plain, plan.few, Alignment(p, g), device))
      plan.few.warps = plan.num_shares = 1;
    return plan;
  }
  plan.refused.push_back({kFewName, few});
  const BackwardTiling together = backward_tiling(p, device, true);
  const std::string not_short = short_refusal(p, plain, exact, together, plan.few.heads, device);
  if (not_short.empty()) {
    plan.kernel = BackwardKernel::kShort;
    plan.tiling.queries = together.queries;
    plan.tiling.keys = together.keys;
    return plan;
  }
  plan.refused.push_back({kShortName, not_short});
  plan.kernel = BackwardKernel::kPasses;
  choose_tf32(p, &plan);
  // Of the pass over keys there are about as many.
  const Tiling& queries = plan.tiling.queries;
  const int64_t tiles =
      p.batch * p.num_heads * ceil_div(p.seqlen_q, queries.block_m) * queries.chunks;
  // Exact deltas, and gradients of terms, are sums over all keys of a row.
  if (plain && !exact && queries.chunks == 1) {
    const int block_n = static_cast<int>(backward_block(size_of(p.dtype)));
    plan.num_shares = shares_that_fill(tiles, blocks_to_walk(p, queries.block_m, block_n), 4,
                                       2 * device.multiprocessors);
  }
  plan.is_queued = plan.num_shares == 1 && queue_pays(p, p.batch * p.num_sources, tiles, device);
  return plan;
}

Tiling associate_tiling(const AttentionProblem& p, const Device& device) {
  const size_t size = size_of(p.dtype), block = backward_block(size);
  Tiling t{};
  t.width = with_widths(p.dtype, [&](auto w) { return decltype(w)::Associate::holding(0); });
  t.panels = static_cast<int>(ceil_div(p.head_dim, t.width));
  t.chunks = 1;
  return fitting(t, fewest_warps(p.seqlen_q), device, [&](const Tiling& m) {
    const size_t walk = m.panels * (m.block_m + block) * t.width * size +
                        m.block_m * block * accumulator_size(p.dtype) + block;
    return std::max(walk, m.warps * block * sizeof(double));  // sums of warps take its place
  });
}

std::string attention_refusal(const AttentionProblem& p) {
  if (p.head_dim > kMostHeadDim) return more("head_dim", p.head_dim, kMostHeadDim);
  if (p.head_dim_v > kMostHeadDim) return more("head_dim of values", p.head_dim_v, kMostHeadDim);
  if (p.num_sources > kMostSources)
    return more("a number of sources of", p.num_sources, kMostSources);
  if (p.seqlen_q > kMostRows) return more("a number of queries of", p.seqlen_q, kMostRows);
  if (p.total_keys > kMostRows) return more("a number of keys of", p.total_keys, kMostRows);
  return "";
}

}  // namespace crossmodal::cuda
