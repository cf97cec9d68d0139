// What the subcommands share: the options every one of them has, and one function each that adds it to the program.
#pragma once

#include <atomic>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "checkpoint/packed_model.h"
#include "infer/sampler.h"
#include "model/forward.h"
#include "serve/access.h"
#include "text/tokenizer.h"

namespace CLI {
class App;
}
namespace fathom {
struct ChatOptions;
}

namespace fathom::cli {

struct CommonOptions {
  int threads = 0;  // 0: usable_cores()
  uint64_t seed = 0;
  bool quiet = false;
  bool json = false;
  std::string device = "cpu";  // or cuda, cuda:N
};

// Each adds its subcommand with options, help and a callback that does the work. The callback throws Error /
// UsageError; main.cc alone catches. `common` outlives the parse and is filled before a callback runs.
void add_train(CLI::App& app, CommonOptions& common);
void add_sft(CLI::App& app, CommonOptions& common);
void add_distill(CLI::App& app, CommonOptions& common);
void add_grpo(CLI::App& app, CommonOptions& common);
void add_score(CLI::App& app, CommonOptions& common);
void add_generate(CLI::App& app, CommonOptions& common);
void add_chat(CLI::App& app, CommonOptions& common);
void add_inspect(CLI::App& app, CommonOptions& common);
void add_tokenize(CLI::App& app, CommonOptions& common);
void add_convert(CLI::App& app, CommonOptions& common);
void add_bench(CLI::App& app, CommonOptions& common);
void add_serve(CLI::App& app, CommonOptions& common);
void add_watch(CLI::App& app, CommonOptions& common);
void add_plan(CLI::App& app, CommonOptions& common);
void add_eval(CLI::App& app, CommonOptions& common);

// Temperature, filters and penalties, as options of `command`.
void add_sampler_options(CLI::App& command, SamplerOptions& sampler);

// The tokenizer of a model: of a directory, a tokenizer.json, the word "bytes", or a GGUF file.
Tokenizer load_tokenizer(const std::filesystem::path& model);
// Nothing for a model directory or GGUF file without one, which can still be given ids.
std::optional<Tokenizer> find_tokenizer(const std::filesystem::path& model);
// The same, and Error where it does not fit the model; nothing for one that fathom does not know, which is told.
std::optional<Tokenizer> find_fitting_tokenizer(const std::filesystem::path& model, const ModelConfig& config,
                                                const std::function<void(const Error&)>& unknown);
// Error where the tokenizer has ids that the model has no embedding for.
void check_vocabulary(const Tokenizer& tokenizer, const ModelConfig& config, const std::filesystem::path& model);

// A text as windows of `window` tokens (0: 2048, or the model's context), see cut_windows. Error, beginning with
// `where`, where there is nothing to predict; UsageError of `command` for a window that the model cannot read.
std::vector<std::vector<int32_t>> text_windows(const std::string& text, const std::string& where,
                                               const Tokenizer& tokenizer, const ModelConfig& config, int64_t window,
                                               std::string_view command);

// Speculative decoding, as options of `command`.
struct DraftOptions {
  std::string draft = "none";
  int64_t tokens = 1;
};
void add_draft_options(CLI::App& command, DraftOptions& options);
// Tokens to draft for each pass of this model: none, which is logged, where it has no MTP module.
int64_t draft_tokens(const DraftOptions& options, const Model& model);

// --kv-type, the number format of the latent cache, as an option of `command`; and what its names mean.
struct CacheType {
  const char* name;
  Format format;
};
inline constexpr CacheType kCacheTypes[] = {{"f32", Format::f32},
                                            {"bf16", Format::bf16},
                                            {"f16", Format::f16},
                                            {"fp8", Format::f8_e4m3},
                                            {"int8", Format::q8_0}};
void add_kv_type_option(CLI::App& command, std::string& kv_type);
// "auto" is f32, on a device bf16.
Format cache_format(const std::string& kv_type, const Device* device);

// Where threads and weights are put, as options of `command`.
struct PlacementOptions {
  bool pin = false, lock = false, huge_pages = false;
  std::string read_ahead = "auto";
  int64_t gpu_memory = 0;  // bytes of a device's for weights; 0: what is free
  // Of experts, what this machine's processes hold; others hold the rest (mpirun fathom serve).
  double expert_share = 1;
};
void add_placement_options(CLI::App& command, PlacementOptions& options);
void add_gpu_memory_option(CLI::App& command, PlacementOptions& options);      // of commands that have --device
void check_gpu_memory(const PlacementOptions& options, const Device* device);  // UsageError for it without a device
// The threads to work on. On a machine with several memory nodes, what they load is dealt out over these.
ThreadPool make_pool(const PlacementOptions& options, const CommonOptions& common);

// A model to infer with, and what it needs to live.
struct ReadyModel {
  PackedModel loaded;
  std::unique_ptr<ExpertReading> reading;     // null where the model fits in memory
  std::unique_ptr<HostExperts> host_experts;  // null where no device is, or it holds all
  Model model;
};
// In the memory of `device`, where it is not null; what of the routed experts has no room there, in the machine's.
// UsageError for a model that no device computes.
void require_dense_attention(const ModelConfig& config);
// What a model in the machine's memory becomes there.
ReadyModel on_device(PackedModel loaded, const PlacementOptions& options, ThreadPool& pool, const Device& device);
ReadyModel load_ready_model(const std::filesystem::path& path, const PlacementOptions& options, ThreadPool& pool,
                            const Device* device = nullptr);
// Of the experts that were chosen, the part that was in memory; nothing where that was not counted.
std::optional<double> hit_rate(const Model& model, const ExpertBytes& chosen);

// Where a server listens and who may ask it, as options of `command`.
struct ListenOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;
  std::string key_file{};
  bool without_key = false;
  std::vector<std::string> allowed_hosts{};
};
void add_listen_options(CLI::App& command, ListenOptions& options);
// UsageError of `command` where other machines would be let in without a key, and nobody has said that this is meant.
serve::Access access_of(const ListenOptions& options, std::string_view command);
// What a browser is given. port: the one that the server took.
std::string url_of(const std::string& host, uint16_t port);

// --template: a Jinja file or kDeepseekV32Encoding; without one, the tokenizer's own template, empty when it has none.
std::string load_chat_template(const std::string& file, const Tokenizer& tokenizer);
// Options with the tokenizer's begin and end token, which templates write.
ChatOptions begin_and_end_of(const Tokenizer& tokenizer);

// What --device names: null for the CPU. Error where there is no such GPU.
std::unique_ptr<Device> open_device(const CommonOptions& common);
// UsageError of a command that runs on the CPU alone.
void require_cpu(const CommonOptions& common, std::string_view command);
// Memory for activations, where they are computed.
Arena make_arena(const Device* device);

// Threads to work on: --threads, or every physical core that this process may use.
int thread_count(const CommonOptions& common);

// Version, commit, instruction sets built and found, backends.
std::string version_text();

// Set by SIGINT or SIGTERM (main.cc installs the handlers): the signal's number, else 0. Long work looks at it at safe
// points, saves what can be saved, and throws Interrupted; the program then exits with 128 + signal.
extern std::atomic<int> interrupted_by;  // threads look too
struct Interrupted {};
void stop_when_interrupted();  // throws it when a signal has come

// The program ends with this code without a word: it, or another process of the job, has said why.
struct ToldElsewhere {
  int exit_code;
};

// "fathom: message" on one line of stderr. Returns exit_code.
int report(std::string message, int exit_code);

// Results, to stdout and flushed. Throws Error when the system refuses them, OutputClosed when nobody reads any more
// (`fathom ... | head`), which ends the program quietly.
void write_stdout(std::string_view text);
struct OutputClosed {};

}  // namespace fathom::cli
