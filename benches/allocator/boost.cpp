// The patterns churn_64 and mix of `src/small.rs` on Boost.Interprocess's managed_shared_memory, by
// one process or several.
//
//     boost PATTERN processes COUNT
//
// prints the seconds that the work took, and two zeros where `src/main.rs` has figures of memory.
#include <boost/interprocess/managed_shared_memory.hpp>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace {

using Segment = boost::interprocess::managed_shared_memory;

// Passes until the gate opens, and the first beginning and the last end in nanoseconds.
struct Gate {
  std::atomic<int> arrived;
  std::atomic<int64_t> begun, ended;
};

int64_t now() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}

// xorshift64* (Vigna, 2016), as in `src/stage.rs`.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(0x9e3779b97f4a7c15 ^ (seed + 1)) {}

  uint64_t below(uint64_t n) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1d >> 32) * n >> 32;
  }

  uint64_t size(uint64_t doublings) {
    uint64_t base = uint64_t{16} << below(doublings);
    return base + below(base);
  }

 private:
  uint64_t state_;
};

// A block, marked at both ends.
char* take(Segment& segment, size_t size) {
  auto* block = static_cast<char*>(segment.allocate(size));
  std::memcpy(block, &size, sizeof size);
  block[size - 1] = static_cast<char>(size);
  return block;
}

void give(Segment& segment, char* block) {
  if (block == nullptr) return;
  size_t size;
  std::memcpy(&size, block, sizeof size);
  if (block[size - 1] != static_cast<char>(size)) std::abort();
  segment.deallocate(block);
}

// A twentieth of the rounds of `src/small.rs`: the caller multiplies.
void churn(Segment& segment) {
  std::vector<char*> live(100, nullptr);
  for (int round = 0; round < 7500; ++round) {
    for (auto& place : live) {
      give(segment, place);
      place = take(segment, 64);
    }
  }
  for (auto* block : live) give(segment, block);
}

void mix(Segment& segment, int worker) {
  Random random(worker);
  std::vector<char*> live(8192, nullptr);
  for (int round = 0; round < 300000; ++round) {
    auto& place = live[random.below(live.size())];
    give(segment, place);
    place = take(segment, random.size(6));
  }
  for (auto* block : live) give(segment, block);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  const std::string pattern = argv[1];
  const int workers = std::atoi(argv[3]);
  const std::string name = "shmkit-bench-boost-" + std::to_string(getpid());
  Segment segment(boost::interprocess::create_only, name.c_str(), size_t{256} << 20);
  // The mapping stays.
  boost::interprocess::shared_memory_object::remove(name.c_str());
  auto* gate = new (mmap(nullptr, sizeof(Gate), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Gate{};
  gate->begun = INT64_MAX;
  for (int worker = 0; worker < workers; ++worker) {
    if (fork() != 0) continue;
    ++gate->arrived;
    while (gate->arrived < workers) {
    }
    const int64_t begun = now();
    pattern == "mix" ? mix(segment, worker) : churn(segment);
    const int64_t ended = now();
    for (int64_t seen = gate->begun; begun < seen && !gate->begun.compare_exchange_weak(seen, begun);) {
    }
    for (int64_t seen = gate->ended; ended > seen && !gate->ended.compare_exchange_weak(seen, ended);) {
    }
    _exit(0);
  }
  int failures = 0;
  for (int status; wait(&status) > 0;) failures += status != 0;
  std::printf("%f 0 0\n", (gate->ended - gate->begun) * 20 / 1e9);
  return failures != 0;
}
