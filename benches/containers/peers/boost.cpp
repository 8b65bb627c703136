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

int main(int, char** arguments) {
  const uint64_t keys = 100000;
  const std::string bench = arguments[1];
  const int workers = std::atoi(arguments[2]);
  const std::string name = "shmkit-bench-boost-" + std::to_string(getpid());
  Segment segment(bip::create_only, name.c_str(), 512u << 20);
  // Only the mapping is needed from here on.
  bip::shared_memory_object::remove(name.c_str());
  auto* mutex = segment.construct<bip::interprocess_mutex>("mutex")();
  auto make = [&] {
    return segment.construct<Map>(bip::anonymous_instance)(
        16, boost::hash<uint64_t>(), std::equal_to<uint64_t>(), Room(segment.get_segment_manager()));
  };
  auto put = [&](Map* map, uint64_t key) { Lock lock(*mutex); (*map)[key] = key; };
  auto each = [&](uint64_t times, const auto& operation) {
    work(workers, times, [&](int me) {
      uint64_t at = me * (keys / 2);
      for (uint64_t i = 0; i < times; i++, at = (at + 7919) % keys) operation(at);
    });
  };
  if (bench == "table_insert") {
    Map* maps[8];
    for (auto& map : maps) map = make();
    work(workers, keys * 8 / workers, [&](int me) {
      for (auto* map : maps) for (uint64_t key = me; key < keys; key += workers) put(map, key);
    });
    return 0;
  }
  auto* map = make();
  for (uint64_t key = 0; key < keys; key++) put(map, key);
  if (bench == "table_get") {
    each(2000000, [&](uint64_t key) { Lock lock(*mutex); if (map->find(key) == map->end()) _exit(1); });
  } else if (bench == "table_replace") {
    each(2000000, [&](uint64_t key) { put(map, key); });
  }
}
