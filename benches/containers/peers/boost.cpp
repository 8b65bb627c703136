// A mutex around Boost's unordered_map in shared memory, on the work of ../src/maps.rs.
//
//   boost BENCH WORKERS
//
// prints the seconds that the work took, how many operations it was, and the processor's seconds of
// the worker that used most. The workers are forked.
#include <boost/interprocess/allocators/allocator.hpp>
#include <boost/interprocess/managed_shared_memory.hpp>
#include <boost/interprocess/sync/interprocess_mutex.hpp>
#include <boost/interprocess/sync/scoped_lock.hpp>
#include <boost/unordered_map.hpp>
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

namespace bip = boost::interprocess;
using Segment = bip::managed_shared_memory;
using Lock = bip::scoped_lock<bip::interprocess_mutex>;
using Pair = std::pair<const uint64_t, uint64_t>;
using Room = bip::allocator<Pair, Segment::segment_manager>;
using Map = boost::unordered_map<uint64_t, uint64_t, boost::hash<uint64_t>, std::equal_to<uint64_t>, Room>;

static double seconds(clockid_t clock) {
  timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

// What the workers leave.
struct Gate {
  std::atomic<int> ready;
  double begun[8], ended[8], used[8];
};

static void work(int workers, uint64_t operations, const std::function<void(int)>& body) {
  void* shared = mmap(nullptr, sizeof(Gate), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto* gate = new (shared) Gate{};
  for (int me = 0; me < workers; me++) {
    if (fork() != 0) continue;
    gate->ready++;
    while (gate->ready < workers) usleep(100);
    gate->begun[me] = seconds(CLOCK_MONOTONIC);
    body(me);
    gate->ended[me] = seconds(CLOCK_MONOTONIC);
    gate->used[me] = seconds(CLOCK_PROCESS_CPUTIME_ID);
    _exit(0);
  }
  for (int i = 0; i < workers; i++) wait(nullptr);
  double begun = *std::min_element(gate->begun, gate->begun + workers);
  double ended = *std::max_element(gate->ended, gate->ended + workers);
  double used = *std::max_element(gate->used, gate->used + workers);
  std::printf("%.6f %lu %.6f\n", ended - begun, (unsigned long)operations * workers, used);
}

// Numbers and keys as in ../src/maps.rs.
static const uint64_t KEYS = 1000000;

static uint64_t key(uint64_t number) { return number * 0x9e3779b97f4a7c15u; }

static uint64_t below(uint64_t& state, uint64_t bound) {
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (state * 0x2545f4914f6cdd1du >> 32) * bound >> 32;
}

int main(int, char** arguments) {
  const std::string bench = arguments[1];
  const int workers = std::atoi(arguments[2]);
  const std::string name = "shmkit-bench-boost-" + std::to_string(getpid());
  Segment segment(bip::create_only, name.c_str(), 1u << 30);
  // Only the mapping is needed from here on.
  bip::shared_memory_object::remove(name.c_str());
  auto* mutex = segment.construct<bip::interprocess_mutex>("mutex")();
  auto* map = segment.construct<Map>("map")(16, boost::hash<uint64_t>(), std::equal_to<uint64_t>(),
                                            Room(segment.get_segment_manager()));
  auto put = [&](uint64_t number) {
    Lock lock(*mutex);
    (*map)[key(number)] = 1;
  };
  if (bench == "map_insert") {
    work(workers, KEYS / workers, [&](int me) {
      for (uint64_t number = me; number < KEYS; number += workers) put(number);
    });
    return 0;
  }
  for (uint64_t number = 0; number < KEYS; number++) put(number);
  if (bench == "map_get") {
    work(workers, KEYS, [&](int me) {
      uint64_t state = 99 + me;
      for (uint64_t i = 0; i < KEYS; i++) {
        Lock lock(*mutex);
        if (map->find(key(below(state, KEYS))) == map->end()) _exit(1);
      }
    });
  }
}
