// The GPU's kernels behind the operators. Nothing here reads what tensors hold or waits for the
// device; everything is allocated by torch, whose allocator knows about captured graphs.
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include "cuda/attention.h"
#include "cuda/weighted_sum.h"
#include "torch/kernels.h"

namespace crossmodal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

namespace {

std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < tensor.dim(); ++d) shape.push_back(tensor.size(d));
  return shape;
}

Tensor sum_over(const Tensor& tensor, const std::vector<int64_t>& dimensions) {
  if (dimensions.empty()) return tensor;
  return torch::stable::sum(tensor, torch::headeronly::IntHeaderOnlyArrayRef(dimensions), true);
}

// Shares of queries -> the gradient of a sink of 1 or batch rows.
Tensor sink_gradient(const Tensor& sink, const Tensor& shares) {
  Tensor gradient = torch::stable::new_empty(sink, {sink.size(0), sink.size(1)});
  const std::vector<int64_t> over =
      sink.size(0) == 1 ? std::vector<int64_t>{0, 2} : std::vector<int64_t>{2};
  const Tensor sums = sum_over(shares, over);
  return torch::stable::copy_(gradient, torch::stable::view(sums, {sink.size(0), sink.size(1)}));
}

// Memory that lives as long as its kernels are enqueued: torch's allocator reuses it in the order
// of the stream.
Tensor bytes(const Tensor& like, size_t count) {
  return torch::stable::new_empty(like, {static_cast<int64_t>(count)}, ScalarType::Byte);
}

// How a term's gradient comes about: what kernels write, and over which dimensions of it the caller
// sums.
struct TermWorkspace {
  Tensor sums;
  std::vector<int64_t> reduced;
};

// A gradient for each query and key goes where it stays, samples and heads summed by the kernel.
// Anything smaller is written for each (batch, head), by query or by key, and summed afterwards:
// its memory grows with one sequence, and the sum has one order.
TermWorkspace bind_term_gradient(const AttentionProblem& p, const Tensor& like, int64_t seqlen_k,
                                 ScoreTerm* term) {
  const bool by_query = like.size(2) != 1, by_key = like.size(3) != 1;
  const bool exact = p.dtype == DType::kFloat64;
  TermWorkspace workspace{nothing(like), {}};
  // One query or key: what is dense is also the row, or the column.
  if (by_query && by_key) {
    workspace.sums = torch::stable::new_zeros(like, shape_of(like),
                                              exact ? ScalarType::Double : ScalarType::Float);
    for (int d = 0; d < 4; ++d)
      term->grad_stride[d] = like.size(d) == 1 ? 0 : workspace.sums.stride(d);
  } else {
    const int64_t rows = by_key ? 1 : p.seqlen_q, columns = by_key ? seqlen_k : 1;
    workspace.sums =
        torch::stable::new_zeros(like, {p.batch, p.num_heads, rows, columns}, ScalarType::Double);
    const int64_t along = rows * columns;
    term->grad_stride[0] = p.num_heads * along;
    term->grad_stride[1] = along;
    term->grad_stride[2] = by_key ? 0 : 1;
    term->grad_stride[3] = by_key ? 1 : 0;
    for (int64_t d = 0; d < 3; ++d)
      if (like.size(d) == 1) workspace.reduced.push_back(d);
  }
  term->grad = workspace.sums.mutable_data_ptr();
  return workspace;
}

class CudaKernels final : public Kernels {
 public:
  explicit CudaKernels(void* stream) : stream_(stream) {}

  bool read_on_host() const override { return false; }

  void attention_fwd(const AttentionProblem& p, const Tensor& like) const override {
    const Tensor workspace = bytes(like, cuda::attention_fwd_workspace(p));
    cuda::attention_fwd(p, workspace.mutable_data_ptr(), stream_);
  }

  TermGradients attention_bwd(const GradientInputs& in, BoundAttention* bound,
                              AttentionBackward* g) const override {
    const AttentionProblem& p = bound->problem;
    std::vector<TermWorkspace> workspaces;
    for (size_t t = 0; t < in.terms.size(); ++t)
      workspaces.push_back(
          in.wants_term(t)
              ? bind_term_gradient(p, in.terms[t], bound->seqlen_k_of_term(t), &bound->term(t))
              : TermWorkspace{nothing(in.terms[t]), {}});
    const int64_t rows =
        p.cu_seqlens_q ? p.num_heads * p.total_q : p.batch * p.num_heads * p.seqlen_q;
    const Tensor states =
        torch::stable::new_empty(in.query, {cuda::kRowStateSize * rows}, accumulator_type(p.dtype));
    Tensor shares = nothing(in.query);
    cuda::BackwardWorkspace workspace{states.mutable_data_ptr(), nullptr, nullptr};
    if (in.wants_sink()) {
      const std::vector<int64_t> shape =
          p.cu_seqlens_q ? std::vector<int64_t>{1, p.num_heads, p.total_q}
                         : std::vector<int64_t>{p.batch, p.num_heads, p.seqlen_q};
      shares = torch::stable::new_zeros(in.query, shape, ScalarType::Double);
      workspace.dsink = static_cast<double*>(shares.mutable_data_ptr());
    }
    const Tensor scratch = bytes(in.query, cuda::attention_bwd_workspace(p, *g, workspace));
    workspace.scratch = scratch.mutable_data_ptr();
    cuda::attention_bwd(p, *g, workspace, stream_);

    TermGradients gradients{{}, nothing(in.query)};
    for (size_t t = 0; t < in.terms.size(); ++t)
      gradients.terms.push_back(
          in.wants_term(t)
              ? as_gradient_of(in.terms[t], sum_over(workspaces[t].sums, workspaces[t].reduced))
              : workspaces[t].sums);
    if (in.sink.has_value())
      gradients.sink = in.wants_sink() ? sink_gradient(*in.sink, shares) : nothing(*in.sink);
    return gradients;
  }

  bool associate_needs_statistics() const override { return true; }

  void associate(const AttentionProblem& p, const AssociateProblem& a,
                 const Tensor& weights) const override {
    const Tensor workspace = bytes(weights, cuda::associate_workspace(p));
    cuda::associate(p, a,
                    weights.numel() * (p.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float)),
                    workspace.mutable_data_ptr(), stream_);
  }

  void weighted_sum_fwd(const WeightedSumProblem& p) const override {
    cuda::weighted_sum_fwd(p, stream_);
  }

  void weighted_sum_bwd(const WeightedSumProblem& p, const WeightedSumBackward& g) const override {
    cuda::weighted_sum_bwd(p, g, stream_);
  }

 private:
  void* stream_;
};

}  // namespace

std::unique_ptr<const Kernels> cuda_kernels(void* stream) {
  return std::make_unique<CudaKernels>(stream);
}

}  // namespace crossmodal
