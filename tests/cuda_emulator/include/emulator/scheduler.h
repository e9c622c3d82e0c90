// Runs a CUDA grid on the CPU, so that device code is executed where there is no GPU.
//
// Blocks run one after another. The threads of a block are fibers: each runs until it meets a
// barrier or a warp collective, and the scheduler resumes the others. The order of threads and of
// blocks is chosen by a seed; a kernel whose result depends on it lacks a barrier. A barrier that
// some thread never reaches, two barriers met at once and an access outside every buffer are
// errors, not hangs.
#pragma once

#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ucontext.h>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace emulator {

constexpr unsigned warp_size = 32;
constexpr size_t stack_bytes = 96 << 10;
// What an A100 and an H100 grant without opting in to more.
constexpr size_t shared_limit = 48 << 10;

enum class State { ready, at_barrier, at_warp, done };

struct Thread {
  ucontext_t entry;
  jmp_buf resume_point;
  std::unique_ptr<char[]> stack;
  State state = State::ready;
  bool started = false;
  dim3 index;
  unsigned linear = 0;
  // Where the thread waits: the barrier's place, or the collective's mask, what this lane brought
  // to it and what all lanes had brought when it was released.
  const char* barrier_file = nullptr;
  int barrier_line = 0;
  unsigned mask = 0;
  uint64_t brought = 0;
  uint64_t collected[warp_size] = {};
};

struct Machine {
  std::vector<Thread> threads;
  Thread* current = nullptr;
  jmp_buf scheduler_point;
  sigjmp_buf fault_point;
  const std::function<void()>* body = nullptr;
  std::exception_ptr failure;
  dim3 block_index, block_size, grid_size;
  std::vector<char> dynamic_shared;
  size_t static_shared_bytes = 0;
  // Counts blocks over all launches: static shared memory is poisoned when it is first met in a
  // block.
  uint64_t block_serial = 0;
  unsigned seed = 0;
};
inline Machine machine;

inline std::string coordinates(dim3 at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
         ")";
}

[[noreturn]] inline void fail(const std::string& what) {
  throw std::runtime_error("cuda_emulator: " + what + ", in block " +
                           coordinates(machine.block_index));
}

// _setjmp and _longjmp switch fibers without the system call that swapcontext makes for the signal
// mask.
inline void suspend(State state) {
  machine.current->state = state;
  if (_setjmp(machine.current->resume_point) == 0)
    _longjmp(machine.scheduler_point, 1);
}

inline void run_thread_body() {
  try {
    (*machine.body)();
  } catch (...) {
    machine.failure = std::current_exception();
  }
  suspend(State::done);
}

inline void resume(Thread& thread) {
  machine.current = &thread;
  if (_setjmp(machine.scheduler_point) == 0) {
    if (thread.started)
      _longjmp(thread.resume_point, 1);
    thread.started = true;
    setcontext(&thread.entry);
  }
  if (machine.failure)
    std::rethrow_exception(std::exchange(machine.failure, nullptr));
}

inline void prepare(Thread& thread, unsigned linear) {
  const dim3 size = machine.block_size;
  thread.state = State::ready;
  thread.started = false;
  thread.linear = linear;
  thread.index = dim3(linear % size.x, linear / size.x % size.y, linear / (size.x * size.y));
  getcontext(&thread.entry);
  thread.entry.uc_stack.ss_sp = thread.stack.get();
  thread.entry.uc_stack.ss_size = stack_bytes;
  thread.entry.uc_link = nullptr;
  makecontext(&thread.entry, run_thread_body, 0);
}

// 0: ascending; 1: descending; any other seed: shuffled anew at every call.
inline void arrange(std::vector<unsigned>& order, std::mt19937& random) {
  const size_t n = order.size();
  for (size_t i = 0; i < n; ++i)
    order[i] = unsigned(machine.seed == 1 ? n - 1 - i : i);
  for (size_t i = n; machine.seed > 1 && i > 1; --i)
    std::swap(order[i - 1], order[random() % i]);
}

inline unsigned present_lanes(unsigned warp) {
  const size_t lanes = machine.threads.size() - warp * warp_size;
  return lanes >= warp_size ? ~0u : (1u << lanes) - 1;
}

// Releases a warp collective when every lane that its mask names has arrived.
inline bool release_warp(unsigned warp) {
  Thread* lanes = &machine.threads[warp * warp_size];
  const unsigned present = present_lanes(warp);
  bool released = false;
  for (unsigned first = 0; first < warp_size; ++first) {
    if (!(present >> first & 1) || lanes[first].state != State::at_warp)
      continue;
    const unsigned wanted = lanes[first].mask & present;
    unsigned arrived = 0;
    for (unsigned l = 0; l < warp_size; ++l)
      if ((wanted >> l & 1) && lanes[l].state == State::at_warp) {
        if ((lanes[l].mask & present) != wanted)
          fail("lanes of one warp name different masks in a collective");
        arrived |= 1u << l;
      }
    if (arrived != wanted)
      continue;
    uint64_t brought[warp_size] = {};
    for (unsigned l = 0; l < warp_size; ++l)
      if (wanted >> l & 1)
        brought[l] = lanes[l].brought;
    for (unsigned l = 0; l < warp_size; ++l)
      if (wanted >> l & 1) {
        std::memcpy(lanes[l].collected, brought, sizeof brought);
        lanes[l].state = State::ready;
      }
    released = true;
  }
  return released;
}

inline bool all_threads(State state) {
  for (const Thread& thread : machine.threads)
    if (thread.state != state)
      return false;
  return true;
}

inline void release_barrier() {
  const Thread& first = machine.threads[0];
  for (Thread& thread : machine.threads) {
    if (thread.barrier_line != first.barrier_line ||
        std::strcmp(thread.barrier_file, first.barrier_file) != 0)
      fail("threads of a block wait at different barriers (lines " +
           std::to_string(first.barrier_line) + " and " + std::to_string(thread.barrier_line) +
           ")");
    thread.state = State::ready;
  }
}

// Warps that run in this round. On a device one may be far ahead of another wherever no barrier
// stops it: so 0 lets all of them run, 1 only the last one that can, and any other seed a random
// half.
inline std::vector<bool> chosen_warps(std::mt19937& random) {
  std::vector<unsigned> able;
  for (unsigned i = 0; i < machine.threads.size(); ++i)
    if (machine.threads[i].state == State::ready && (able.empty() || able.back() != i / warp_size))
      able.push_back(i / warp_size);
  std::vector<bool> chosen((machine.threads.size() + warp_size - 1) / warp_size, machine.seed == 0);
  if (machine.seed == 0 || able.empty())
    return chosen;
  chosen[machine.seed == 1 ? able.back() : able[random() % able.size()]] = true;
  for (unsigned warp : able)
    if (machine.seed > 1 && random() % 2)
      chosen[warp] = true;
  return chosen;
}

inline bool run_round(std::vector<unsigned>& order, std::mt19937& random) {
  bool progressed = false;
  arrange(order, random);
  const std::vector<bool> chosen = chosen_warps(random);
  for (unsigned i : order)
    if (chosen[i / warp_size] && machine.threads[i].state == State::ready) {
      resume(machine.threads[i]);
      progressed = true;
    }
  return progressed;
}

inline void run_block(std::mt19937& random) {
  std::vector<unsigned> order(machine.threads.size());
  for (unsigned i = 0; i < order.size(); ++i)
    prepare(machine.threads[i], i);
  while (!all_threads(State::done)) {
    bool progressed = run_round(order, random);
    for (unsigned warp = 0; warp * warp_size < order.size(); ++warp)
      progressed |= release_warp(warp);
    if (all_threads(State::at_barrier))
      release_barrier();
    else if (!progressed && !all_threads(State::done))
      fail("a barrier or warp collective is not reached by every thread that it waits for");
  }
}

inline void on_fault(int) { siglongjmp(machine.fault_point, 1); }

// Turns a fault on a guard page (memory.h) into an exception while a grid runs.
class FaultHandler {
public:
  FaultHandler() {
    struct sigaction action = {};
    action.sa_handler = on_fault;
    sigaction(SIGSEGV, &action, &segv_);
    sigaction(SIGBUS, &action, &bus_);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &segv_, nullptr);
    sigaction(SIGBUS, &bus_, nullptr);
  }
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

private:
  struct sigaction segv_, bus_;
};

inline void check_launch_shape(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64)
    throw std::runtime_error("cuda_emulator: a block has 1 to 1024 threads, got " +
                             coordinates(block));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535)
    throw std::runtime_error("cuda_emulator: the grid " + coordinates(grid) +
                             " cannot be launched");
  if (shared_bytes > shared_limit)
    throw std::runtime_error("cuda_emulator: " + std::to_string(shared_bytes) +
                             " bytes of shared memory exceed the limit of " +
                             std::to_string(shared_limit));
}

inline void run_grid() {
  const dim3 grid = machine.grid_size;
  std::mt19937 random(machine.seed);
  std::vector<unsigned> blocks(size_t(grid.x) * grid.y * grid.z);
  arrange(blocks, random);
  for (unsigned b : blocks) {
    machine.block_index = dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
    ++machine.block_serial;
    // All bits set: NaN for every floating-point type, garbage as on the device.
    std::memset(machine.dynamic_shared.data(), 0xFF, machine.dynamic_shared.size());
    run_block(random);
  }
}

inline void run_grid_guarded() {
  const FaultHandler handler;
  if (sigsetjmp(machine.fault_point, 1) != 0)
    fail("thread " + coordinates(machine.current->index) + " touched memory outside every buffer");
  run_grid();
}

template <class Kernel, class... Args>
void launch(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, Args... args) {
  check_launch_shape(grid, block, shared_bytes);
  machine.grid_size = grid, machine.block_size = block;
  const size_t n = size_t(block.x) * block.y * block.z;
  while (machine.threads.size() < n)
    machine.threads.emplace_back().stack = std::make_unique<char[]>(stack_bytes);
  machine.threads.resize(n);
  machine.dynamic_shared.resize(shared_bytes);
  const std::function<void()> call = [&] { kernel(args...); };
  machine.body = &call;
  run_grid_guarded();
}

// Static shared memory of one declaration: poisoned when a block first meets it.
template <class T> class Shared {
public:
  T& enter() {
    if (serial_ != machine.block_serial) {
      std::memset(static_cast<void*>(&value_), 0xFF, sizeof(T));
      serial_ = machine.block_serial;
    }
    return value_;
  }

private:
  alignas(32) T value_;
  uint64_t serial_ = 0;
};

inline void barrier(const char* file, int line) {
  machine.current->barrier_file = file;
  machine.current->barrier_line = line;
  suspend(State::at_barrier);
}

template <class T> const uint64_t* collect(unsigned mask, T value) {
  static_assert(sizeof(T) <= 8, "a warp collective moves at most 8 bytes");
  Thread& self = *machine.current;
  if (!(mask >> self.linear % warp_size & 1))
    fail("a lane takes part in a warp collective whose mask does not name it");
  self.brought = 0;
  std::memcpy(&self.brought, &value, sizeof(T));
  self.mask = mask;
  suspend(State::at_warp);
  return self.collected;
}

template <class T> T shuffle(unsigned mask, T value, unsigned source) {
  const unsigned lane = source % warp_size;
  const uint64_t raw = collect(mask, value)[lane];
  if (!(mask & present_lanes(machine.current->linear / warp_size) & 1u << lane))
    fail("a shuffle reads a lane that takes no part in it");
  T result;
  std::memcpy(&result, &raw, sizeof(T));
  return result;
}

} // namespace emulator
