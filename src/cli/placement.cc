// Where threads and weights are put: --pin, --mlock, --hugepages, --read-ahead.
#include <CLI/CLI.hpp>
#include <algorithm>

#include "base/numa.h"
#include "base/residency.h"
#include "base/terminal.h"
#include "checkpoint/weight_memory.h"
#include "cli/command.h"
#include "infer/device_placement.h"
#include "ops/device.h"

namespace fathom::cli {
namespace {

// What every token reads is read now; of experts and embedding nothing is until it is wanted, and then nothing else.
void advise_weights(const ModelWeights& weights) {
  ModelWeights views = weights;
  for_each_weight(views, [](WeightKind kind, const Tensor& slot) {
    if (!slot) return;
    using enum WeightKind;
    const bool scattered = kind == embedding || kind == experts || kind == experts_down;
    (scattered ? expect_scattered_reads
               : read_ahead)({static_cast<const std::byte*>(slot.data), static_cast<size_t>(slot.size_bytes())});
  });
}

// Experts that other processes hold are views of files that nobody reads here.
void check_share(const ModelWeights& weights, double expert_share) {
  ModelWeights views = weights;
  double experts = 0;
  for_each_weight(views, [&](WeightKind kind, const Tensor& slot) {
    const bool is_expert = kind == WeightKind::experts || kind == WeightKind::experts_down;
    if (slot && is_expert) experts += static_cast<double>(slot.size_bytes());
  });
  const double bytes = static_cast<double>(weight_bytes(weights)) - (1 - expert_share) * experts;
  const uint64_t available = available_memory_bytes();
  if (weights_fit(static_cast<int64_t>(bytes), available)) return;
  log("this machine's part of the weights is {}, more than the {} of memory available: it will read from disk again "
      "and again",
      human_bytes(bytes), human_bytes(static_cast<double>(available)));
}

std::unique_ptr<ExpertReading> make_expert_reading(const PackedModel& loaded, const PlacementOptions& options) {
  const bool wanted = options.read_ahead == "on";
  if (!is_mapped(loaded)) {
    if (wanted) log("--read-ahead on: the weights are in memory, so that nothing is read from disk");
    return nullptr;
  }
  if (options.expert_share < 1) {
    check_share(loaded.weights, options.expert_share);
    return nullptr;
  }
  const int64_t bytes = weight_bytes(loaded.weights);
  const uint64_t available = available_memory_bytes();
  const bool fit = weights_fit(bytes, available);
  if (options.read_ahead == "off" || (fit && !wanted)) {
    if (fit) prefer_huge_pages(loaded);
    return nullptr;
  }
  if (!fit) {
    log("the weights are {}, more than the {} of memory available: experts are read from disk when they are chosen",
        human_bytes(static_cast<double>(bytes)), human_bytes(static_cast<double>(available)));
  }
  const bool counts = shows_residency(loaded);
  if (!counts) log("the model's files are another user's: the system does not tell what of them is in memory");
  advise_weights(loaded.weights);
  constexpr uint64_t kPartAhead = 4;  // of memory
  return std::make_unique<ExpertReading>(
      ExpertReading{static_cast<int64_t>(std::min<uint64_t>(available, INT64_MAX) / kPartAhead), counts});
}

void load_in_huge_pages(PackedModel& loaded, ThreadPool& pool) {
  const std::string policy = huge_page_policy();
  if (policy != "always" && policy != "madvise") {
    log("--hugepages: this system gives none (transparent_hugepage is '{}')", policy);
    return;
  }
  move_to_huge_pages(loaded, pool);
  log("{} of the process are in huge pages; the weights are {}", human_bytes(static_cast<double>(huge_page_bytes())),
      human_bytes(static_cast<double>(weight_bytes(loaded.weights))));
}

}  // namespace

void add_placement_options(CLI::App& command, PlacementOptions& options) {
  command.add_flag("--pin", options.pin, "Keep each thread on one CPU");
  command.add_flag("--mlock", options.lock, "Lock the weights in memory, so that the system cannot take them out");
  command.add_flag("--hugepages", options.huge_pages,
                   "Read the weights of a packed directory into huge pages: gives up the load in no time");
  command
      .add_option("--read-ahead", options.read_ahead,
                  "Read chosen experts ahead, and count those found in memory: auto (where the model does not fit), "
                  "on, off")
      ->check(CLI::IsMember({"auto", "on", "off"}));
}

void add_gpu_memory_option(CLI::App& command, PlacementOptions& options) {
  command
      .add_option("--gpu-memory", options.gpu_memory,
                  "Bytes of the GPU's memory for weights, such as 20GB: routed experts that have no room there stay in "
                  "the machine's memory and are computed by the CPU (default: all weights where they fit, else seven "
                  "eighths of what is free)")
      ->transform(CLI::AsSizeValue(true))
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 60));
}

ThreadPool make_pool(const PlacementOptions& options, const CommonOptions& common) {
  if (const std::vector<int> nodes = memory_nodes(); nodes.size() > 1 && interleave_memory(nodes)) {
    log("weights are dealt out over {} memory nodes", nodes.size());
  }
  const int n_threads = thread_count(common);
  if (!options.pin) return ThreadPool(n_threads);
  const std::vector<int> cpus = usable_cpus();
  if (static_cast<int>(cpus.size()) < n_threads) {
    throw UsageError("--pin: {} threads, but this process may use {} CPUs; give --threads {} or less", n_threads,
                     cpus.size(), cpus.size());
  }
  return ThreadPool(n_threads, cpus);
}

void require_dense_attention(const ModelConfig& config) {
  if (!config.is_mla()) {
    throw UsageError("models of the kind {} run on the CPU alone so far, leave --device out", config.model_type);
  }
  if (!config.is_sparse()) return;
  throw UsageError("sparse attention ({}) runs on the CPU alone so far, leave --device out", config.model_type);
}

void check_gpu_memory(const PlacementOptions& options, const Device* device) {
  if (device != nullptr || options.gpu_memory == 0) return;
  throw UsageError("--gpu-memory is for weights in a GPU's memory: give --device cuda, or leave it out");
}

ReadyModel on_device(PackedModel loaded, const PlacementOptions& options, ThreadPool& pool, const Device& device) {
  const auto free = static_cast<int64_t>(device.free_bytes());
  const bool whole = weight_bytes(loaded.weights) <= free;
  const int64_t budget = options.gpu_memory > 0 ? std::min(options.gpu_memory, free) : whole ? free : free - free / 8;
  if (is_mapped(loaded) && !whole) prefer_huge_pages(loaded);
  std::unique_ptr<HostExperts> host = place_on_device(loaded, device, budget, pool.size());
  if (host != nullptr) {
    log("{} of {} experts of each layer are on the GPU, the others are computed by the CPU", host->n_on_device(),
        loaded.config.router.n_routed_experts);
  }
  Model model = make_model(loaded.config, loaded.weights);
  model.host_experts = host.get();
  return {std::move(loaded), nullptr, std::move(host), std::move(model)};
}

ReadyModel load_ready_model(const std::filesystem::path& path, const PlacementOptions& options, ThreadPool& pool,
                            const Device* device) {
  if (options.read_ahead == "on" && options.huge_pages) {
    throw UsageError("--read-ahead on: with --hugepages all weights are in memory; leave one of them out");
  }
  if (device != nullptr && (options.lock || options.huge_pages || options.read_ahead == "on")) {
    throw UsageError("--mlock, --hugepages and --read-ahead are for weights in the machine's memory: leave them out");
  }
  check_gpu_memory(options, device);
  PackedModel loaded = load_packed_model(path, pool);
  if (device != nullptr) {
    require_dense_attention(loaded.config);
    return on_device(std::move(loaded), options, pool, *device);
  }
  if (options.huge_pages) load_in_huge_pages(loaded, pool);
  if (options.lock) lock_weights(loaded);
  std::unique_ptr<ExpertReading> reading = make_expert_reading(loaded, options);
  Model model = make_model(loaded.config, loaded.weights);
  model.reading = reading.get();
  return {std::move(loaded), std::move(reading), nullptr, std::move(model)};
}

std::unique_ptr<Device> open_device(const CommonOptions& common) {
  if (common.device == "cpu") return nullptr;
  const size_t colon = common.device.find(':');
  return open_cuda_device(colon == std::string::npos ? 0 : std::stoi(common.device.substr(colon + 1)));
}

void require_cpu(const CommonOptions& common, std::string_view command) {
  if (common.device == "cpu") return;
  throw UsageError("{}: runs on the CPU alone so far, leave --device {} out", command, common.device);
}

Arena make_arena(const Device* device) { return device != nullptr ? Arena(device->allocate) : Arena(); }

std::optional<double> hit_rate(const Model& model, const ExpertBytes& chosen) {
  if (model.reading == nullptr || !model.reading->counts || chosen.chosen == 0) return std::nullopt;
  return chosen.hit_rate();
}

}  // namespace fathom::cli
