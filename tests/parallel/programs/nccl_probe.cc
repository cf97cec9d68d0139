// Random messages between ranks with a GPU each, of the GPUs' memory and of the host's, and their check. To be started
// by mpirun; rank 0 prints one JSON object. Exits with 77 where a machine has fewer GPUs than ranks.
//   nccl_probe [MESSAGES [SEEDS [MOST_BYTES]]]
#include <cuda_runtime.h>

#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/terminal.h"
#include "parallel/collectives.h"
#include "parallel/mpi.h"
#include "parallel/nccl.h"
#include "parallel/random_messages.h"

namespace fathom {
namespace {

constexpr int kSkipped = 77;

// Of this process among those of its machine; -1 where who started it does not say.
int number_in_environment(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (const char* const value = std::getenv(name)) return std::atoi(value);
  }
  return -1;
}

void check(cudaError_t result) {
  if (result != cudaSuccess) throw Error("CUDA: {}", cudaGetErrorString(result));
}

// A piece of the GPU, dealt out: memory must not be allocated while messages are under way.
class Room {
 public:
  explicit Room(size_t n_bytes) : n_bytes_(n_bytes) { check(cudaMalloc(&memory_, n_bytes)); }
  ~Room() { cudaFree(memory_); }
  std::span<std::byte> take(size_t n_bytes) {
    FATHOM_CHECK(used_ + n_bytes <= n_bytes_);
    const std::span<std::byte> taken(static_cast<std::byte*>(memory_) + used_, n_bytes);
    used_ += (n_bytes + 15) / 16 * 16;
    return taken;
  }

 private:
  void* memory_ = nullptr;
  const size_t n_bytes_;
  size_t used_ = 0;
};

int run(int argc, char** argv) {
  const auto argument = [&](int i, int otherwise) { return i < argc ? std::atoi(argv[i]) : otherwise; };
  const int n_messages = argument(1, 2000), n_seeds = argument(2, 5), most_bytes = argument(3, 20 << 20);
  int n_gpus = 0;
  if (cudaGetDeviceCount(&n_gpus) != cudaSuccess) n_gpus = 0;
  const int local = std::max(0, number_in_environment({"OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"}));
  const int n_local = number_in_environment({"OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"});
  if (std::max(n_local, local + 1) > n_gpus) {
    if (local == 0) {
      std::cerr << fmt::format("nccl_probe: skipped: {} ranks on this machine, {} GPUs\n", std::max(n_local, 1),
                               n_gpus);
    }
    return kSkipped;
  }

  const std::unique_ptr<Communicator> host = join_mpi();
  if (host->size() < 2) {
    std::cerr << "nccl_probe: skipped: one rank has nobody to send to; start two or more by mpirun\n";
    return kSkipped;
  }
  const std::unique_ptr<Communicator> comm = join_nccl(*host, local);
  std::vector<int> ranks;
  for (int r = 0; r < comm->size(); ++r) ranks.push_back(r);
  const RankGroup all = make_group(*comm, ranks, 0), beside = make_group(*host, ranks, 0);
  cudaStream_t stream = nullptr;  // of its own: the default one would wait for all others
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const auto copy = [&](void* to, const void* from, size_t n_bytes) {
    check(cudaMemcpyAsync(to, from, n_bytes, cudaMemcpyDefault, stream));
    check(cudaStreamSynchronize(stream));
  };

  int64_t counts[4] = {};  // messages that came, of them to the GPU's memory, with other bytes; bytes
  const double begin_s = monotonic_s();
  for (int seed = 0; seed < n_seeds; ++seed) {
    const auto messages =
        test::random_messages(static_cast<uint64_t>(seed), comm->size(), n_messages, static_cast<size_t>(most_bytes));
    Rng places(static_cast<uint64_t>(1000 * seed + comm->rank()));
    std::vector<bool> on_gpu(messages.size());
    size_t n_bytes = 0;
    for (size_t i = 0; i < messages.size(); ++i) {
      on_gpu[i] = places.below(2) == 0;
      if (on_gpu[i]) n_bytes += messages[i].n_bytes + 16;
      if (messages[i].to != comm->rank()) continue;
      ++counts[0];
      counts[1] += on_gpu[i] ? 1 : 0;
      counts[3] += static_cast<int64_t>(messages[i].n_bytes);
    }
    Room room(n_bytes);
    std::map<size_t, std::vector<std::byte>> kept;
    barrier(beside);  // nobody sends while another allocates
    counts[2] += test::exchange_randomly(*comm, messages, static_cast<uint64_t>(seed),
                                         {.make =
                                              [&](size_t i, const std::vector<std::byte>& content) {
                                                if (!on_gpu[i]) return std::span(kept[i] = content);
                                                const std::span<std::byte> memory = room.take(content.size());
                                                copy(memory.data(), content.data(), content.size());
                                                return memory;
                                              },
                                          .read =
                                              [&](size_t, std::span<const std::byte> memory) {
                                                std::vector<std::byte> content(memory.size());
                                                copy(content.data(), memory.data(), memory.size());
                                                return content;
                                              }});
    barrier(beside);  // nobody frees while another sends
  }
  const double seconds = monotonic_s() - begin_s;

  // Collectives, over the host's memory: the bits that they have over MPI.
  std::vector<float> over(100'003), expected;
  Rng rng(static_cast<uint64_t>(comm->rank()));
  for (float& value : over) value = static_cast<float>(rng.normal());
  expected = over;
  all_reduce(all, over);
  all_reduce(beside, expected);
  int64_t n_other_sums = over == expected ? 0 : 1;

  sum_over(beside, std::span(counts));
  sum_over(beside, std::span(&n_other_sums, 1));
  const bool right = counts[2] == 0 && n_other_sums == 0;
  if (comm->rank() == 0) {
    std::cout << nlohmann::json{{"ranks", comm->size()},      {"messages", counts[0]},
                                {"to_gpu_memory", counts[1]}, {"wrong", counts[2]},
                                {"bytes", counts[3]},         {"ranks_with_other_sums", n_other_sums},
                                {"seconds", seconds},         {"nccl", nccl_build_text()}}
                     .dump()
              << std::endl;
  }
  check(cudaStreamDestroy(stream));
  return right ? 0 : 1;
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);  // parallel/nccl.h
  try {
    return fathom::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "nccl_probe: " << error.what() << '\n';
    return 1;
  }
}
