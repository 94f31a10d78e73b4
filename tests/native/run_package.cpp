// Runs an AOTInductor package that holds this library's operators, without Python.
//
//     run_package libcrossmodal.so model.pt2 inputs.pt outputs.pt
//
// inputs.pt is a tuple of tensors, written by torch.save; outputs.pt becomes one that torch.load
// reads.
#include <dlfcn.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

namespace {

std::vector<char> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

int run(const char* library, const char* package, const char* inputs_path,
        const char* outputs_path) {
  // Registers the operators; the package looks them up by name.
  if (dlopen(library, RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const c10::IValue loaded = torch::jit::pickle_load(read(inputs_path));
  std::vector<at::Tensor> inputs;
  for (const c10::IValue& value : loaded.toTupleRef().elements()) {
    inputs.push_back(value.toTensor());
  }
  torch::inductor::AOTIModelPackageLoader loader(package);
  const std::vector<at::Tensor> outputs = loader.run(inputs);

  std::vector<c10::IValue> values(outputs.begin(), outputs.end());
  const std::vector<char> bytes =
      torch::jit::pickle_save(c10::ivalue::Tuple::create(std::move(values)));
  std::ofstream(outputs_path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  std::printf("%zu outputs\n", outputs.size());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: %s libcrossmodal.so model.pt2 inputs.pt outputs.pt\n", argv[0]);
    return 2;
  }
  try {
    return run(argv[1], argv[2], argv[3], argv[4]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
