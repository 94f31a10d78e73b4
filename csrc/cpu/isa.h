// Which instruction set the CPU kernels use. One library holds them all; the best that this machine
// has is chosen at run time, CROSSMODAL_CPU_ISA forces another.
#pragma once

#include <string>

namespace crossmodal::cpu {

// A greater value is a better instruction set.
enum class Isa : int { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

inline constexpr int kIsaCount = 4;

struct IsaEntry {
  Isa isa;
  const char* name;
  bool compiled;        // this library holds kernels for it
  bool (*supported)();  // by this CPU and its operating system

  bool usable() const { return compiled && supported(); }
};

// Best first; the last, portable, is always usable.
extern const IsaEntry kIsaTable[kIsaCount];

// Chosen at the first call and the same ever after, unless select_isa() is called.
Isa active_isa();

// Makes the named instruction set the active one. Returns what is wrong with the name, or an empty
// text. Kernels already running finish with the one they started with.
std::string select_isa(const char* name);

// What is wrong with CROSSMODAL_CPU_ISA, or an empty text. It is reported, not thrown, since the
// choice may be made while the library is being loaded, where an exception would end the process;
// the best usable set is active then.
const std::string& isa_environment_error();

}  // namespace crossmodal::cpu
