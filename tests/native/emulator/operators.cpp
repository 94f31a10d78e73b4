// The operators of torch.ops.crossmodal_emulated: those of csrc/torch on CPU tensors, run by
// emulated CUDA kernels.
#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "emulator/entry_points.h"
#include "torch/kernels.h"

namespace {

const emulator::EntryPoints* kernels = nullptr;

}  // namespace

// Kernels of a shared library take over; returns null, or what is wrong with it.
extern "C" __attribute__((visibility("default"))) const char* emulator_load(const char* library) {
  void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (!handle) return dlerror();
  kernels = static_cast<const emulator::EntryPoints*>(dlsym(handle, "emulated_kernels"));
  return kernels ? nullptr : dlerror();
}

extern "C" __attribute__((visibility("default"))) void emulator_set_mode(int schedule, int copies,
                                                                         uint64_t seed) {
  kernels->set_mode(
      {static_cast<emulator::Schedule>(schedule), static_cast<emulator::Copies>(copies), seed});
}

extern "C" __attribute__((visibility("default"))) void emulator_set_bug(int bug) {
  *kernels->bug = bug;
}

extern "C" __attribute__((visibility("default"))) void emulator_refuse_after(int launches) {
  *kernels->launches_left = launches;
}

namespace crossmodal {

namespace cuda {

size_t attention_fwd_workspace(const AttentionProblem& problem) {
  return kernels->attention_fwd_workspace(problem);
}
void attention_fwd(const AttentionProblem& problem, void* workspace, void* stream) {
  kernels->attention_fwd(problem, workspace, stream);
}
size_t attention_bwd_workspace(const AttentionProblem& problem, const AttentionBackward& gradients,
                               const BackwardWorkspace& workspace) {
  return kernels->attention_bwd_workspace(problem, gradients, workspace);
}
void attention_bwd(const AttentionProblem& problem, const AttentionBackward& gradients,
                   const BackwardWorkspace& workspace, void* stream) {
  kernels->attention_bwd(problem, gradients, workspace, stream);
}
size_t associate_workspace(const AttentionProblem& problem) {
  return kernels->associate_workspace(problem);
}
void associate(const AttentionProblem& problem, const AssociateProblem& request,
               size_t weights_bytes, void* workspace, void* stream) {
  kernels->associate(problem, request, weights_bytes, workspace, stream);
}
void weighted_sum_fwd(const WeightedSumProblem& problem, void* stream) {
  kernels->weighted_sum_fwd(problem, stream);
}

void weighted_sum_bwd(const WeightedSumProblem& problem, const WeightedSumBackward& backward,
                      void* stream) {
  kernels->weighted_sum_bwd(problem, backward, stream);
}

}  // namespace cuda

std::unique_ptr<const Kernels> kernels_of(const torch::stable::Tensor&) {
  return cuda_kernels(nullptr);
}

}  // namespace crossmodal
