#include "emulator/machine.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/fiber.h"

namespace emulator {

Index thread_index, block_index, block_size, grid_size;
int bug = kNoBug, launches_left = kNeverRefused;

namespace {

struct Thread {
  Fiber fiber;
  Index index;
  Meeting* waits_at = nullptr;
  uint64_t waits_for_round = 0;
  std::vector<std::function<void()>> open_copies;
  std::deque<std::vector<std::function<void()>>> groups;

  bool waits() const { return waits_at != nullptr && waits_at->round == waits_for_round; }
};

struct Warp {
  Meeting meeting;
  WarpSlots slots;
};

// The shared memory of a block, up against a page that may not be touched.
class SharedMemory {
 public:
  ~SharedMemory() { release(); }
  void resize(size_t bytes) {
    const size_t page = sysconf(_SC_PAGESIZE), rounded = (bytes + 127) / 128 * 128;
    const size_t pages = (rounded + page - 1) / page;
    release();
    mapped_ = (pages + 1) * page;
    base_ = static_cast<char*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + pages * page, page, PROT_NONE);
    begin_ = base_ + pages * page - rounded;
    size_ = bytes;
  }
  // All bits set are NaN in every floating-point type.
  void poison() { std::memset(begin_, 0xff, size_); }
  char* begin() const { return begin_; }
  size_t size() const { return size_; }

 private:
  void release() {
    if (base_) munmap(base_, mapped_);
    base_ = nullptr;
  }
  char *base_ = nullptr, *begin_ = nullptr;
  size_t mapped_ = 0, size_ = 0;
};

Thread threads[kMostThreads];
Warp warps[kMostThreads / kWarp];
Meeting whole_block;
SharedMemory shared;
Thread* current = nullptr;
const std::function<void()>* body = nullptr;
std::string failure;
Mode active;
std::mt19937_64 random_bits;

struct Stopped {};

bool coin() { return random_bits() & 1; }

void thread_main() {
  if (!failure.empty()) return;
  try {
    (*body)();
    for (const auto& group : current->groups)
      if (!group.empty()) fail("copies were still under way when their thread ended");
    if (!current->open_copies.empty()) fail("copies were still under way when their thread ended");
  } catch (const Stopped&) {
  } catch (const std::exception& error) {
    failure = error.what();
  }
}

void run_thread(Thread& thread) {
  current = &thread;
  thread_index = thread.index;
  thread.fiber.resume();
  current = nullptr;
}

// Lets a warp run until every lane has ended or waits for another warp; whether it got anywhere.
bool run_warp(int first, int last) {
  bool moved = false;
  for (bool again = true; again && failure.empty();) {
    again = false;
    for (int t = first; t < last; ++t) {
      if (threads[t].fiber.finished() || threads[t].waits()) continue;
      run_thread(threads[t]);
      again = moved = true;
    }
    // Another warp may overtake wherever this one has just met.
    if (active.schedule == Schedule::kRandom && random_bits() % 64 == 0) break;
  }
  return moved;
}

std::string where_threads_wait(int count) {
  std::string text = "deadlock in block " + std::to_string(block_index.x) + ", " +
                     std::to_string(block_index.y) + ":";
  for (int t = 0; t < count; ++t)
    if (!threads[t].fiber.finished() &&
        (t == 0 || t % kWarp == 0 || threads[t - 1].fiber.finished()))
      text += " thread " + std::to_string(t) + " at " + threads[t].waits_at->name + ";";
  return text;
}

void run_block(int count) {
  shared.poison();
  whole_block = Meeting{};
  const int num_warps = (count + kWarp - 1) / kWarp;
  for (int w = 0; w < num_warps; ++w) warps[w].meeting = Meeting{};
  std::vector<int> order(num_warps);
  for (int w = 0; w < num_warps; ++w)
    order[w] = active.schedule == Schedule::kLastFirst ? num_warps - 1 - w : w;
  for (int t = 0; t < count; ++t) {
    Thread& thread = threads[t];
    thread.index = {static_cast<unsigned>(t), 0, 0};
    thread.waits_at = nullptr;
    thread.open_copies.clear();
    thread.groups.clear();
    current = &thread;
    // Stops right away, so that the schedule decides who goes first.
    thread.fiber.start(
        [](void*) {
          current->fiber.pause();
          thread_main();
        },
        nullptr);
  }
  for (;;) {
    if (active.schedule == Schedule::kRandom) std::shuffle(order.begin(), order.end(), random_bits);
    bool moved = false, alive = false;
    for (const int w : order) moved |= run_warp(w * kWarp, std::min(count, (w + 1) * kWarp));
    if (!failure.empty()) break;
    for (int t = 0; t < count; ++t) alive |= !threads[t].fiber.finished();
    if (!alive) return;
    if (!moved) {
      failure = where_threads_wait(count);
      break;
    }
  }
  // Unwinds the fibers that are left, so that their objects are destroyed.
  for (int t = 0; t < count; ++t)
    while (!threads[t].fiber.finished()) run_thread(threads[t]);
}

std::vector<unsigned> order_of_blocks(int64_t blocks) {
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (active.schedule == Schedule::kLastFirst) std::reverse(order.begin(), order.end());
  if (active.schedule == Schedule::kRandom) std::shuffle(order.begin(), order.end(), random_bits);
  return order;
}

}  // namespace

void set_mode(const Mode& mode) {
  active = mode;
  random_bits.seed(mode.seed);
}

void run(const Index& grid, int count, size_t shared_bytes, const std::function<void()>& kernel) {
  if (count < 1 || count > kMostThreads) throw std::runtime_error("a block of no valid size");
  shared.resize(shared_bytes);
  body = &kernel;
  block_size = {static_cast<unsigned>(count), 1, 1};
  grid_size = grid;
  failure.clear();
  for (const unsigned b : order_of_blocks(int64_t{grid.x} * grid.y)) {
    block_index = {b % grid.x, b / grid.x, 0};
    run_block(count);
    if (!failure.empty()) break;
  }
  body = nullptr;
  if (!failure.empty()) throw std::runtime_error(failure);
}

int lane() { return static_cast<int>(thread_index.x % kWarp); }
int warp() { return static_cast<int>(thread_index.x / kWarp); }
char* shared_begin() { return shared.begin(); }
size_t shared_size() { return shared.size(); }

void fail(const char* what) {
  if (failure.empty()) failure = what;
  throw Stopped{};
}

Meeting& block_meeting() { return whole_block; }
Meeting& warp_meeting() { return warps[warp()].meeting; }
WarpSlots& warp_slots() { return warps[warp()].slots; }

void meet(Meeting& meeting, int expected, const char* name, const std::function<void()>& last) {
  // Lanes that meet at different instructions, as hardware would not let them.
  if (meeting.arrived > 0 && std::strcmp(meeting.name, name) != 0)
    fail("threads that should meet wait at different instructions");
  meeting.name = name;
  const uint64_t round = meeting.round;
  if (++meeting.arrived == expected) {
    last();
    meeting.arrived = 0;
    ++meeting.round;
    return;
  }
  Thread& self = *current;
  self.waits_at = &meeting;
  self.waits_for_round = round;
  self.fiber.pause();
  if (!failure.empty()) throw Stopped{};
  self.waits_at = nullptr;
}

void start_copy(std::function<void()> copy) {
  if (active.copies == Copies::kEarly || (active.copies == Copies::kRandom && coin())) {
    copy();
  } else {
    current->open_copies.push_back(std::move(copy));
  }
}

void commit_copies() {
  current->groups.push_back(std::move(current->open_copies));
  current->open_copies.clear();
}

void wait_for_copies(int groups_left) {
  auto& groups = current->groups;
  while (static_cast<int>(groups.size()) > groups_left) {
    for (const auto& copy : groups.front()) copy();
    groups.pop_front();
  }
}

}  // namespace emulator
