#include "torch/tensors.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <string>

namespace crossmodal {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

DType dtype_of(const Tensor& tensor, const char* op, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::Double:
      return DType::kFloat64;
    default:
      STD_TORCH_CHECK(false, op, ": ", name, " must be float32, bfloat16, float16 or float64");
  }
  return DType::kFloat32;  // not reached: the check above throws
}

void check_same_device(const Tensor& tensor, const Tensor& main, const char* op, const char* name) {
  const bool same = tensor.is_cuda() == main.is_cuda() &&
                    (!tensor.is_cuda() || tensor.get_device_index() == main.get_device_index());
  STD_TORCH_CHECK(same, op, ": ", name, " must be on the device of the other tensors");
}

ScalarType accumulator_type(DType dtype) {
  return dtype == DType::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

Tensor with_unit_last_stride(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (tensor.size(last) <= 1 || tensor.stride(last) == 1) return tensor;
  return torch::stable::contiguous(tensor);
}

Tensor empty_in_order_of(const Tensor& like, int64_t rows, int64_t width) {
  const int64_t batch = like.size(0), num_heads = like.size(1);
  if (like.stride(1) >= like.stride(2))
    return on_large_pages(torch::stable::new_empty(like, {batch, num_heads, rows, width}));
  const Tensor transposed =
      on_large_pages(torch::stable::new_empty(like, {batch, rows, num_heads, width}));
  return torch::stable::transpose(transposed, 1, 2);
}

Tensor on_large_pages(Tensor tensor) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kLargePage = 2 << 20;
  if (!tensor.is_cpu()) return tensor;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.mutable_data_ptr());
  const uintptr_t bytes = tensor.numel() * size_of(dtype_of(tensor, "an operator", "its output"));
  const uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage,
                  last = (begin + bytes) / kLargePage * kLargePage;
  // Advice: where it is not taken, nothing is lost.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return tensor;
}

namespace {

template <class Int>
void check_range(const Int* lengths, const char* op, const char* name, int64_t batch,
                 int64_t limit) {
  for (int64_t b = 0; b < batch; ++b)
    STD_TORCH_CHECK(lengths[b] >= 0 && lengths[b] <= limit, op, ": ", name, " must lie in [0, ",
                    limit, "], got ", lengths[b], " at batch index ", b);
}

}  // namespace

bool checks_values() {
  static const bool asked = [] {
    const char* value = std::getenv("CROSSMODAL_CHECK");
    const std::string text = value ? value : "";
    return text != "" && text != "0" && text != "false" && text != "no" && text != "off";
  }();
  return asked;
}

Tensor checked_lengths(const Tensor& lengths, const char* op, const char* name, int64_t batch,
                       int64_t limit) {
  const ScalarType type = lengths.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Int || type == ScalarType::Long, op, ": ", name,
                  " must be int32 or int64");
  STD_TORCH_CHECK(lengths.dim() == 1 && lengths.size(0) == batch, op, ": ", name,
                  " must have one entry per sample");
  const Tensor row = torch::stable::contiguous(lengths);
  if (checks_values() && row.is_cpu()) {
    if (type == ScalarType::Long) {
      check_range(static_cast<const int64_t*>(row.const_data_ptr()), op, name, batch, limit);
    } else {
      check_range(static_cast<const int32_t*>(row.const_data_ptr()), op, name, batch, limit);
    }
  }
  return row;
}

cpu::Threads torch_threads() {
  return {static_cast<int>(torch::stable::get_num_threads()),
          [](int64_t workers, const std::function<void(int64_t)>& body) {
            torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
              for (int64_t worker = begin; worker < end; ++worker) body(worker);
            });
          }};
}

}  // namespace crossmodal
