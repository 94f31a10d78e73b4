#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>

#include "core/introspection.h"

namespace crossmodal::cpu {
namespace {

// The build defines CROSSMODAL_ISA_* for each instruction set whose kernels it compiles.
#ifdef CROSSMODAL_ISA_AVX2
constexpr bool kAvx2Compiled = true;
#else
constexpr bool kAvx2Compiled = false;
#endif
#ifdef CROSSMODAL_ISA_AVX512
constexpr bool kAvx512Compiled = true;
#else
constexpr bool kAvx512Compiled = false;
#endif
#ifdef CROSSMODAL_ISA_AVX512_BF16
constexpr bool kAvx512Bf16Compiled = true;
#else
constexpr bool kAvx512Bf16Compiled = false;
#endif

bool supports_portable() { return true; }

#if defined(__x86_64__)
// These ask XGETBV too: a CPU whose operating system does not save the wide registers counts as one
// without them.
bool supports_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool supports_avx512() {
  return supports_avx2() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}
bool supports_avx512_bf16() { return supports_avx512() && __builtin_cpu_supports("avx512bf16"); }
#else
bool supports_avx2() { return false; }
bool supports_avx512() { return false; }
bool supports_avx512_bf16() { return false; }
#endif

}  // namespace

const IsaEntry kIsaTable[kIsaCount] = {
    {Isa::kAvx512Bf16, "avx512_bf16", kAvx512Bf16Compiled, supports_avx512_bf16},
    {Isa::kAvx512, "avx512", kAvx512Compiled, supports_avx512},
    {Isa::kAvx2, "avx2", kAvx2Compiled, supports_avx2},
    {Isa::kPortable, "portable", true, supports_portable},
};

namespace {

constexpr char kVariable[] = "CROSSMODAL_CPU_ISA";

// "portable, avx2, ...", worst first: the order in which a reader expects to see them grow.
std::string names(bool usable_only) {
  std::string text;
  for (int i = kIsaCount - 1; i >= 0; --i) {
    if (usable_only && !kIsaTable[i].usable()) continue;
    if (!text.empty()) text += ", ";
    text += kIsaTable[i].name;
  }
  return text;
}

struct Choice {
  Isa isa;
  std::string error;  // empty: isa is what was asked for
};

Isa best_usable() {
  for (const IsaEntry& entry : kIsaTable) {
    if (entry.usable()) return entry.isa;
  }
  return Isa::kPortable;
}

// `subject` is what the caller calls the name: the variable or the argument.
Choice find(const std::string& name, const std::string& subject) {
  for (const IsaEntry& entry : kIsaTable) {
    if (name != entry.name) continue;
    if (entry.usable()) return {entry.isa, ""};
    const char* reason = entry.compiled ? "is not supported by this CPU" : "is not in this build";
    return {best_usable(),
            subject + " '" + name + "' " + reason + ", choose one of " + names(true)};
  }
  return {best_usable(), subject + " must be one of " + names(false) + ", got '" + name + "'"};
}

const Choice& environment_choice() {
  static const Choice choice = [] {
    const char* name = std::getenv(kVariable);
    // An empty value counts as unset, as it does for most variables a shell exports.
    return name && *name ? find(name, kVariable) : Choice{best_usable(), ""};
  }();
  return choice;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{environment_choice().isa};
  return isa;
}

}  // namespace

Isa active_isa() { return active().load(std::memory_order_relaxed); }

std::string select_isa(const char* name) {
  const Choice choice = find(name ? name : "", "isa");
  if (choice.error.empty()) active().store(choice.isa, std::memory_order_relaxed);
  return choice.error;
}

const std::string& isa_environment_error() { return environment_choice().error; }

}  // namespace crossmodal::cpu

using namespace crossmodal::cpu;

const char* crossmodal_cpu_isas() {
  static thread_local std::string json;
  json.clear();
  for (const IsaEntry& entry : kIsaTable) {
    const auto boolean = [](bool value) { return value ? "true" : "false"; };
    json += json.empty() ? "[" : ", ";
    json += std::string("{\"name\": \"") + entry.name +
            "\", \"compiled\": " + boolean(entry.compiled) +
            ", \"supported\": " + boolean(entry.supported()) +
            ", \"active\": " + boolean(entry.isa == active_isa()) + "}";
  }
  json += "]";
  return json.c_str();
}

const char* crossmodal_select_isa(const char* name) {
  static thread_local std::string error;
  error = select_isa(name);
  return error.empty() ? nullptr : error.c_str();
}

const char* crossmodal_isa_environment_error() {
  const std::string& error = isa_environment_error();
  return error.empty() ? nullptr : error.c_str();
}
