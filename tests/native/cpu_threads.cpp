// Every CPU operator on several threads of the C++ library, for ThreadSanitizer, which knows those
// but not OpenMP's. Results have to be those of one thread, bit for bit, as the contract says.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "core/attention_problem.h"
#include "core/weighted_sum_problem.h"
#include "cpu/attention.h"
#include "cpu/weighted_sum.h"

namespace crossmodal {
namespace {

constexpr int kThreads = 4;
constexpr int64_t kBatch = 3, kHeads = 4, kHeadsK = 2, kQueries = 70, kWidth = 24, kWidthV = 40;
constexpr int64_t kKeys[] = {300, 33};  // more than a chunk of keys, and a second source
constexpr int64_t kTotalKeys = kKeys[0] + kKeys[1];
constexpr int64_t kRows = kBatch * kHeads * kQueries;

void run_here(int64_t workers, const std::function<void(int64_t)>& body) {
  for (int64_t worker = 0; worker < workers; ++worker) body(worker);
}
void run_in_threads(int64_t workers, const std::function<void(int64_t)>& body) {
  std::vector<std::thread> threads;
  for (int64_t worker = 0; worker < workers; ++worker) threads.emplace_back(body, worker);
  for (std::thread& thread : threads) thread.join();
}

using Floats = std::vector<float>;

Floats randoms(int64_t n, int seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  Floats values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

// NaN where nothing was written.
Floats unwritten(int64_t n) { return Floats(n, std::numeric_limits<float>::quiet_NaN()); }

void contiguous(int64_t heads, int64_t rows, int64_t width, int64_t (&stride)[3]) {
  stride[0] = heads * rows * width;
  stride[1] = rows * width;
  stride[2] = width;
}

struct Outcome {
  const char* name;
  Floats values;
  // Sums over samples, heads or queries depend on how many accumulators there are.
  bool exact = true;
};
using Outcomes = std::vector<Outcome>;

// Two sources of grouped heads with lengths, a bias with a gradient that is summed over samples, a
// sink, dropout: everything that threads could share by mistake.
Outcomes attention(const cpu::Threads& threads) {
  const Floats q = randoms(kBatch * kHeads * kQueries * kWidth, 1);
  const Floats dout = randoms(kRows * kWidthV, 2), sink = randoms(kHeads, 3);
  const Floats bias = randoms(kHeads * kQueries * kKeys[0], 4), dmass = randoms(kRows * 2, 5);
  const int32_t lengths[kBatch] = {300, 0, 117};
  const int64_t seed = 7;
  Floats out = unwritten(kRows * kWidthV), lse = unwritten(kRows), top = unwritten(kRows),
         sum = unwritten(kRows), mass = unwritten(kRows * 2), dq = unwritten(kRows * kWidth);
  std::vector<Floats> k, v, dk, dv;
  KeySource sources[2] = {};
  for (int s = 0; s < 2; ++s) {
    const int64_t rows = kBatch * kHeadsK * kKeys[s];
    k.push_back(randoms(rows * kWidth, 10 + s));
    v.push_back(randoms(rows * kWidthV, 20 + s));
    dk.push_back(unwritten(rows * kWidth));
    dv.push_back(unwritten(rows * kWidthV));
  }
  for (int s = 0; s < 2; ++s) {
    KeySource& source = sources[s];
    source.k = k[s].data();
    source.v = v[s].data();
    source.num_heads_k = kHeadsK;
    source.seqlen_k = kKeys[s];
    contiguous(kHeadsK, kKeys[s], kWidth, source.k_stride);
    contiguous(kHeadsK, kKeys[s], kWidthV, source.v_stride);
    contiguous(kHeadsK, kKeys[s], kWidth, source.dk_stride);
    contiguous(kHeadsK, kKeys[s], kWidthV, source.dv_stride);
  }
  sources[0].lengths = lengths;
  ScoreTerm& term = sources[0].terms[0];
  sources[0].num_terms = 1;
  term.data = bias.data();
  term.type = TermType::kFloat32;
  term.factor = 1;
  const int64_t term_stride[4] = {0, kQueries * kKeys[0], kKeys[0], 1};
  std::memcpy(term.stride, term_stride, sizeof(term_stride));

  AttentionProblem p{};
  p.q = q.data();
  contiguous(kHeads, kQueries, kWidth, p.q_stride);
  p.sources = sources;
  p.num_sources = 2;
  p.batch = kBatch;
  p.num_heads = kHeads;
  p.seqlen_q = kQueries;
  p.head_dim = kWidth;
  p.head_dim_v = kWidthV;
  p.total_keys = kTotalKeys;
  p.scale = 0.2;
  p.softcap = 20;
  p.window_left = p.window_right = -1;
  p.sink = sink.data();
  p.dropout_p = 0.1;
  p.dropout_seed = &seed;
  p.dtype = DType::kFloat32;
  p.out = out.data();
  contiguous(kHeads, kQueries, kWidthV, p.out_stride);
  p.lse = lse.data();
  p.row_top = top.data();
  p.row_sum = sum.data();
  p.mass = mass.data();
  cpu::attention_fwd(p, threads);

  AttentionBackward g{};
  g.dout = dout.data();
  contiguous(kHeads, kQueries, kWidthV, g.dout_stride);
  g.dmass = dmass.data();
  g.dq = dq.data();
  contiguous(kHeads, kQueries, kWidth, g.dq_stride);
  std::vector<double> dsink(kBatch * kHeads, std::numeric_limits<double>::quiet_NaN());
  g.dsink = dsink.data();
  for (int s = 0; s < 2; ++s) {
    sources[s].dk = dk[s].data();
    sources[s].dv = dv[s].data();
  }
  std::memcpy(term.grad_stride, term_stride, sizeof(term_stride));
  term.grad_size = static_cast<int64_t>(bias.size());
  term.grad = &g;  // the split asks whether there is one
  const cpu::BackwardSplit split = cpu::split_backward(p, threads.count);
  Floats dbias(split.partials * term.grad_size, 0.0f);
  term.grad = dbias.data();
  g.num_partials = split.partials;
  cpu::attention_bwd(p, g, split, threads);
  dbias.resize(bias.size());

  Outcomes found = {{"out", out}, {"lse", lse}, {"mass", mass}, {"dq", dq}};
  for (int s = 0; s < 2; ++s) {
    found.push_back({"dk", dk[s]});
    found.push_back({"dv", dv[s]});
  }
  found.push_back({"dsink", Floats(dsink.begin(), dsink.end())});
  found.push_back({"dbias", dbias, false});

  for (const AssociateOutput output :
       {AssociateOutput::kWeights, AssociateOutput::kHeadMean, AssociateOutput::kTopK,
        AssociateOutput::kKeyTotal, AssociateOutput::kEntropy}) {
    AssociateProblem a{};
    a.output = output;
    a.topk = 5;
    const int64_t sizes[] = {kRows * kTotalKeys, kBatch * kQueries * kTotalKeys, kRows * a.topk,
                             kBatch * kHeads * kTotalKeys, kRows};
    Floats weights = unwritten(sizes[static_cast<int>(output)]);
    std::vector<int64_t> indices(kRows * a.topk);
    a.weights = weights.data();
    a.indices = indices.data();
    p.dropout_p = 0;
    cpu::associate(p, a, threads);
    found.push_back({"associate", weights});
  }
  return found;
}

Outcomes weighted_sum(const cpu::Threads& threads) {
  const int64_t keys = kKeys[0];
  const Floats weights = randoms(kRows * keys, 6), dout = randoms(kRows * kWidth, 8);
  const Floats values = randoms(kBatch * kHeads * keys * kWidth, 7);
  Floats out = unwritten(kRows * kWidth), dweights = unwritten(kRows * keys),
         dvalues = unwritten(kBatch * kHeads * keys * kWidth);
  const int64_t lengths[kBatch] = {300, 0, 117};
  WeightedSumProblem w{};
  w.weights = weights.data();
  w.values = values.data();
  w.out = out.data();
  w.lengths = lengths;
  w.lengths_are_int64 = true;
  w.batch = kBatch;
  w.num_heads = kHeads;
  w.seqlen_q = kQueries;
  w.seqlen_k = keys;
  w.head_dim = kWidth;
  w.dtype = DType::kFloat32;
  const auto strides = [](int64_t rows, int64_t width, int64_t (&stride)[4]) {
    const int64_t all[4] = {kHeads * rows * width, rows * width, width, 1};
    std::memcpy(stride, all, sizeof(all));
  };
  strides(kQueries, keys, w.weights_stride);
  strides(keys, kWidth, w.values_stride);
  strides(kQueries, kWidth, w.out_stride);
  cpu::weighted_sum_fwd(w, threads);
  WeightedSumBackward g{};
  g.dout = dout.data();
  strides(kQueries, kWidth, g.dout_stride);
  g.dweights = dweights.data();
  g.dvalues = dvalues.data();
  cpu::weighted_sum_bwd(w, g, threads);
  return {{"weighted sum", out}, {"dweights", dweights}, {"dvalues", dvalues}};
}

int compare(const Outcomes& one, const Outcomes& several) {
  int faults = 0;
  for (size_t i = 0; i < one.size(); ++i) {
    const Floats &a = one[i].values, &b = several[i].values;
    bool same = a.size() == b.size(), written = true;
    for (size_t j = 0; same && j < a.size(); ++j) {
      written &= a[j] == a[j];
      same &= one[i].exact ? std::memcmp(&a[j], &b[j], sizeof(float)) == 0
                           : std::abs(a[j] - b[j]) <= 1e-5f * (1 + std::abs(a[j]));
    }
    if (same && written) continue;
    std::printf("%s: %s\n", one[i].name, same ? "not written" : "differs between thread counts");
    ++faults;
  }
  return faults;
}

}  // namespace
}  // namespace crossmodal

int main() {
  using namespace crossmodal;
  const cpu::Threads one{1, run_here}, several{kThreads, run_in_threads};
  int faults = 0;
  for (int round = 0; round < 3; ++round) {
    faults += compare(attention(one), attention(several));
    faults += compare(weighted_sum(one), weighted_sum(several));
  }
  std::printf("%d faults\n", faults);
  return faults != 0;
}
