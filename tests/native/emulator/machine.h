// A GPU in the small: one block at a time, its threads as fibers on one host thread.
//
// What is modelled because kernels can get it wrong: threads that run far ahead of each other until
// a barrier holds them, warp instructions that wait for all 32 lanes, blocks that come in any
// order, shared memory that starts as NaN and ends at a page that must not be touched, asynchronous
// copies that land as early or as late as the hardware may let them. Not modelled: memory ordering
// between caches, and blocks that wait for each other, which no kernel's may.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulator {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// How adversarial the next launches are. Schedule: which warp runs when none has to, and which
// block comes next. Copies: when an asynchronous copy lands between its issue and the wait for it.
enum class Schedule { kFirstFirst, kLastFirst, kRandom };
enum class Copies { kEarly, kLate, kRandom };
struct Mode {
  Schedule schedule = Schedule::kFirstFirst;
  Copies copies = Copies::kEarly;
  uint64_t seed = 1;
};
void set_mode(const Mode& mode);

// Which of the bugs that a build has, see tests/native/bugs, is in force: none at first.
constexpr int kNoBug = -1;
extern int bug;

// How many launches there are until the device refuses one; none at first.
constexpr int kNeverRefused = -1;
extern int launches_left;

// Runs `threads` threads of each block of a grid with so much dynamic shared memory. Throws
// std::runtime_error on whatever hardware would not survive: a deadlock, a misaligned or outlying
// address, copies that nobody waited for.
void run(const Index& grid, int threads, size_t shared_bytes, const std::function<void()>& kernel);

// Of the thread that runs. The whole block's memory is [shared_begin, shared_begin + shared_size).
extern Index thread_index, block_index, block_size, grid_size;
int lane();
int warp();
char* shared_begin();
size_t shared_size();

// Stops the launch; what run() throws.
[[noreturn]] void fail(const char* what);

// Where threads wait for each other: the last of `expected` to arrive runs `last`, then all go on.
struct Meeting {
  int arrived = 0;
  uint64_t round = 0;
  const char* name = "";
};
Meeting& block_meeting();
Meeting& warp_meeting();
void meet(Meeting& meeting, int expected, const char* name, const std::function<void()>& last);

// One slot per lane for operands of a warp instruction that is being assembled.
struct WarpSlots {
  const void* in[kWarp];
  void* out[kWarp];
};
WarpSlots& warp_slots();

// Every lane brings `in` and `out`; the last one runs the instruction for all.
template <class Instruction>
void warp_instruction(const char* name, const void* in, void* out, Instruction instruction) {
  WarpSlots& slots = warp_slots();
  slots.in[lane()] = in;
  slots.out[lane()] = out;
  meet(warp_meeting(), kWarp, name, [&] { instruction(slots); });
}

// Asynchronous copies of the running thread.
void start_copy(std::function<void()> copy);
void commit_copies();
void wait_for_copies(int groups_left);

}  // namespace emulator
