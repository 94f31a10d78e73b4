// The Python module `_native`: what the library tells about itself. Operators are not here, they
// reach Python through torch's registry; so libcrossmodal.so works without this module. Its twin in
// ctypes is crossmodal/_introspection.py.
#include "core/introspection.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <new>
#include <optional>
#include <string>

namespace py = pybind11;

namespace {

// The order of the enumerators in core/dtype.h.
constexpr const char* kDTypeNames[] = {"float32", "bfloat16", "float16", "float64"};

template <typename T>  // py::dict or py::list, for the signature that Python shows
T parse_json(const char* text) {
  return py::module_::import("json").attr("loads")(text);
}

std::string active_isa() {
  for (const py::handle entry : parse_json<py::list>(crossmodal_cpu_isas())) {
    if (entry["active"].cast<bool>()) return entry["name"].cast<std::string>();
  }
  throw std::logic_error("no instruction set is active");
}

void select_isa(const std::string& name) {
  if (const char* error = crossmodal_select_isa(name.c_str())) throw py::value_error(error);
}

int dtype_number(const std::string& name) {
  std::string known;
  int number = 0;
  for (const char* candidate : kDTypeNames) {
    if (name == candidate) return number;
    known += (number++ ? ", " : "") + std::string(candidate);
  }
  throw py::value_error("dtype must be one of " + known + ", got '" + name + "'");
}

py::dict attention_plan(const std::string& dtype, int64_t batch, int64_t num_heads,
                        int64_t seqlen_q, int64_t seqlen_k, int64_t head_dim,
                        std::optional<int64_t> head_dim_v, bool is_causal) {
  return parse_json<py::dict>(crossmodal_attention_plan(dtype_number(dtype), batch, num_heads,
                                                        seqlen_q, seqlen_k, head_dim,
                                                        head_dim_v.value_or(head_dim), is_causal));
}

py::dict cuda_attention_plan(const std::string& dtype, int64_t batch, int64_t num_heads,
                             int64_t num_heads_k, int64_t seqlen_q, int64_t seqlen_k,
                             int64_t head_dim, int64_t head_dim_v, bool is_plain, bool is_exact,
                             bool is_ragged, bool allow_tf32, int arch, int multiprocessors,
                             int64_t shared_bytes, int64_t l2_bytes) {
  return parse_json<py::dict>(crossmodal_cuda_attention_plan(
      dtype_number(dtype), batch, num_heads, num_heads_k, seqlen_q, seqlen_k, head_dim, head_dim_v,
      is_plain, is_exact, is_ragged, allow_tf32, arch, multiprocessors, shared_bytes, l2_bytes));
}

// The interpreter's lock is let go, so that several Python threads measure at the same time what
// the cores can do together.
double measure_peak(const std::string& dtype) {
  const int number = dtype_number(dtype);
  const py::gil_scoped_release release;
  return crossmodal_measure_peak(number);
}

double measure_bandwidth(int64_t num_bytes) {
  if (num_bytes < 1) {
    throw py::value_error("num_bytes must be positive, got " + std::to_string(num_bytes));
  }
  double result = 0;
  {
    const py::gil_scoped_release release;
    result = crossmodal_measure_bandwidth(num_bytes);
  }
  if (result == 0) throw std::bad_alloc();
  return result;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  using py::arg;
  m.doc() = "What libcrossmodal.so tells about itself.";
  m.def(
      "build_info", [] { return parse_json<py::dict>(crossmodal_build_info()); },
      "How the library was built: version, compiler, torch_target, sanitizer, cuda.");
  m.def(
      "cpu_isas", [] { return parse_json<py::list>(crossmodal_cpu_isas()); },
      "Instruction sets, best first: name, compiled, supported, active.");
  m.def("active_isa", &active_isa, "Name of the instruction set that CPU kernels use now.");
  m.def("select_isa", &select_isa, arg("name"), "Makes the named instruction set the active one.");
  m.def("isa_environment_error", &crossmodal_isa_environment_error,
        "What is wrong with CROSSMODAL_CPU_ISA, or None.");
  m.def("attention_plan", &attention_plan, arg("dtype"), arg("batch"), arg("num_heads"),
        arg("seqlen_q"), arg("seqlen_k"), arg("head_dim"), arg("head_dim_v") = py::none(),
        arg("is_causal") = false, "The kernel that this attention problem would run.");
  m.def("cuda_attention_plan", &cuda_attention_plan, arg("dtype"), arg("batch"), arg("num_heads"),
        arg("num_heads_k"), arg("seqlen_q"), arg("seqlen_k"), arg("head_dim"), arg("head_dim_v"),
        arg("is_plain"), arg("is_exact"), arg("is_ragged"), arg("allow_tf32"), arg("arch"),
        arg("multiprocessors"), arg("shared_bytes"), arg("l2_bytes"),
        "The kernels that a GPU would run this attention problem with.");
  m.def("measure_peak", &measure_peak, arg("dtype"),
        "GFLOP/s of multiply-adds out of registers on one thread.");
  m.def("measure_bandwidth", &measure_bandwidth, arg("num_bytes"),
        "GB/s at which one thread reads a buffer of this size over and over.");
}
