#include "train/options.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/cpu.h"
#include "base/file.h"
#include "checkpoint/hf_config.h"
#include "ops/device.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

template <class T>
struct Named {
  const char* name;
  T value;
};
constexpr Named<Balance> kBalances[] = {{"bias", Balance::bias},
                                        {"aux", Balance::aux},
                                        {"aux-batch", Balance::aux_batch},
                                        {"none", Balance::none},
                                        {"auto", Balance::automatic}};
constexpr Named<Precision> kPrecisions[] = {{"f32", Precision::f32},
                                            {"bf16", Precision::bf16},
                                            {"fp8", Precision::fp8},
                                            {"fp8-per-tensor", Precision::fp8_per_tensor}};

constexpr Named<Dsa> kDsas[] = {
    {"auto", Dsa::automatic}, {"off", Dsa::off}, {"warmup", Dsa::warmup}, {"sparse", Dsa::sparse}};

constexpr Named<Recompute> kRecomputes[] = {
    {"none", Recompute::none}, {"selective", Recompute::selective}, {"full", Recompute::full}};

template <class T, size_t N>
const char* name_in(const Named<T> (&all)[N], T value) {
  return std::ranges::find(all, value, &Named<T>::value)->name;
}

// UsageError unless it is there.
template <class T, size_t N>
T value_in(const Named<T> (&all)[N], const std::string& name, const char* option, const char* must) {
  const auto* const found = std::ranges::find(all, name, &Named<T>::name);
  if (found == std::end(all)) throw UsageError("{} {}: must be {}", option, printable(name), must);
  return found->value;
}

void need(bool condition, const TrainOptions& o, const char* option, const std::string& value, const char* must) {
  if (!condition) throw UsageError("{}: {} is {}, must be {}", o.command, option, value, must);
}

// Whether `path`, which need not be there yet, is `directory` or lies below it.
bool is_within(const fs::path& path, const fs::path& directory) {
  std::error_code error;
  for (fs::path at = fs::weakly_canonical(fs::absolute(path), error); !error; at = at.parent_path()) {
    if (same_path(at, directory)) return true;
    if (at == at.parent_path()) return false;
  }
  return false;
}

// Of OUT, beside checkpoints/ and average/.
constexpr const char* kOwnFiles[] = {"config.json",
                                     "generation_config.json",
                                     "model.safetensors",
                                     "tokenizer.json",
                                     "tokenizer_config.json",
                                     "train.jsonl",
                                     "report.html",
                                     "data/train",
                                     "data/val"};

void check_log(const TrainOptions& o) {
  if (o.log.empty()) return;
  const std::string log = printable(o.log.native());
  for (const char* name : kOwnFiles) {
    if (name != std::string_view("train.jsonl") && same_path(o.log, o.out / name)) {
      throw UsageError("{}: --log {} is where --out puts its {}", o.command, log, name);
    }
  }
  for (const char* folder : {"checkpoints", "data", "average"}) {
    if (is_within(o.log, o.out / folder)) throw UsageError("{}: --log {} lies in a folder of --out", o.command, log);
  }
  std::error_code error;
  if (!fs::is_regular_file(o.log, error) || fs::file_size(o.log, error) == 0 || error) return;
  std::string first(16, '\0');
  std::ifstream(o.log).read(first.data(), static_cast<std::streamsize>(first.size()));
  if (!first.starts_with("{\"step\":")) {
    throw UsageError("{}: --log {} holds something that is no log of a run; remove it or give another", o.command, log);
  }
}

}  // namespace

void check_options(const TrainOptions& o) {
  if (o.model_config.empty() == o.init.empty()) {
    throw UsageError("{}: give either --model-config FILE (a new model) or --init DIR (start from a checkpoint)",
                     o.command);
  }
  if (o.data.empty())
    throw UsageError("{}: give --data PATH...: text to learn from, or a dataset of tokens", o.command);
  if (o.out.empty()) throw UsageError("{}: give --out DIR: where checkpoints and the model go", o.command);
  if (o.tokenizer.empty() && o.init.empty()) {
    throw UsageError("{}: give --tokenizer FILE, DIR or bytes", o.command);
  }
  constexpr int64_t kMost = int64_t{1} << 31;
  const auto positive = [&o](const char* name, int64_t value) {
    need(value > 0 && value <= kMost, o, name, fmt::to_string(value), "between 1 and 2^31");
  };
  const auto not_negative = [&o](const char* name, int64_t value) {
    need(value >= 0, o, name, fmt::to_string(value), "0 or more");
  };
  positive("--steps", o.steps);
  positive("--seq-len", o.seq_len);
  positive("--batch-size", o.batch_size);
  not_negative("--micro-batch", o.micro_batch);
  if (o.micro_batch > 0 && o.batch_size % o.micro_batch != 0) {
    throw UsageError("{}: --micro-batch {} does not divide --batch-size {}", o.command, o.micro_batch, o.batch_size);
  }
  not_negative("--batch-start", o.batch_start);
  not_negative("--batch-ramp", o.batch_ramp);
  if ((o.batch_start > 0) != (o.batch_ramp > 0)) {
    throw UsageError("{}: --batch-start N and --batch-ramp STEPS go together", o.command);
  }
  if (o.batch_start > o.batch_size || (o.micro_batch > 0 && o.batch_start % o.micro_batch != 0)) {
    throw UsageError("{}: --batch-start is {}, must be at most --batch-size and a multiple of --micro-batch", o.command,
                     o.batch_start);
  }
  if (o.batch_ramp > o.steps || (o.extend_at > 0 && o.batch_ramp > o.extend_at)) {
    throw UsageError("{}: --batch-ramp is {}, must end before --steps and --extend-at", o.command, o.batch_ramp);
  }
  not_negative("--mtp-late-at", o.mtp_late_at);
  if (o.mtp_late_at > o.steps)
    throw UsageError("{}: --mtp-late-at {} is behind the last of --steps {}", o.command, o.mtp_late_at, o.steps);
  not_negative("--extend-seq-len", o.extend_seq_len);
  if (o.extend_seq_len > 0) {
    if (o.extend_at < 1 || o.extend_at >= o.steps) {
      throw UsageError("{}: --extend-at is {}, must be between 1 and --steps - 1: the last step of --seq-len",
                       o.command, o.extend_at);
    }
    if (o.batch_size * o.seq_len % o.extend_seq_len != 0 || o.micro_batch * o.seq_len % o.extend_seq_len != 0) {
      throw UsageError("{}: --extend-seq-len {} does not divide the tokens of a step or micro-batch ({} x {})",
                       o.command, o.extend_seq_len, o.micro_batch > 0 ? o.micro_batch : o.batch_size, o.seq_len);
    }
  } else if (o.extend_at != 0) {
    throw UsageError("{}: --extend-at needs --extend-seq-len N: how long sequences are from there on", o.command);
  }
  not_negative("--warmup", o.lr.warmup);
  not_negative("--val-every", o.val_every);
  not_negative("--val-sequences", o.val_sequences);
  not_negative("--save-every", o.save_every);
  const Keep& keep = o.saver.keep;
  not_negative("--keep", keep.newest);
  not_negative("--keep-every", keep.every);
  if (keep.every > 0 && keep.newest == 0) {
    throw UsageError("{}: --keep-every {} needs --keep N: without it every checkpoint stays", o.command, keep.every);
  }
  not_negative("--sample-every", o.sample_every);
  not_negative("--max-skips", o.max_skips);
  const auto within = [&o](const char* name, double value, double low, double high, const char* must) {
    need(value >= low && value <= high, o, name, fmt::to_string(value), must);
  };
  within("--fim-rate", o.fim_rate, 0, 1, "between 0 and 1");
  within("--lr", o.lr.peak, 1e-12, 100, "above 0 and at most 100");
  within("--min-lr", o.lr.min, 0, o.lr.peak, "between 0 and --lr");
  within("--decay-fraction", o.lr.decay_fraction, 0, 1, "between 0 and 1");
  within("--weight-decay", o.weight_decay, 0, 100, "between 0 and 100");
  within("--beta1", o.beta1, 0, 0.999999, "at least 0 and below 1");
  within("--beta2", o.beta2, 0, 0.999999, "at least 0 and below 1");
  within("--eps", o.eps, 1e-30, 1, "above 0 and at most 1");
  within("--ema-decay", o.ema_decay, 0, 0.9999999, "at least 0 and below 1");
  within("--clip", o.clip, 0, 1e30, "0 (no limit) or more");
  within("--spike-deviations", o.spike_deviations, 0, 1e30, "0 (no spikes) or more");
  within("--bias-update-speed", o.bias_update_speed, 0, 1, "between 0 and 1");
  within("--bias-freeze", o.bias_freeze, 0, 1, "between 0 and 1");
  within("--mtp-weight", o.mtp_weight, 0, 100, "between 0 and 100");
  within("--mtp-weight-late", o.mtp_weight_late, 0, 100, "between 0 and 100");
  if (o.balance_alpha != -1) within("--balance-alpha", o.balance_alpha, 0, 100, "between 0 and 100");
  if (o.dsa == Dsa::warmup && o.init.empty()) {
    throw UsageError("{}: --dsa warmup trains the indexer of a model that attends already; give it with --init",
                     o.command);
  }
  positive("--index-n-heads", o.indexer.n_heads);
  positive("--index-head-dim", o.indexer.head_dim);
  positive("--index-topk", o.indexer.topk);
  if (o.yarn_factor != 0) within("--yarn-factor", o.yarn_factor, 1, 1e6, "between 1 and 1e6");
  not_negative("--yarn-original", o.yarn_original);  // 0: as if it were not given
  if (o.yarn_factor != 0 && o.init.empty()) {
    throw UsageError("{}: --yarn-factor extends the model of --init; a --model-config has a rope_scaling of its own",
                     o.command);
  }
  if (o.val_every > 0 && o.val_data.empty()) {
    throw UsageError("{}: --val-every needs --val-data PATH...: text that is not learned from", o.command);
  }
}

// What the run writes must not be what it reads, nor anything but an earlier log what the log takes the place of.
void check_files(const TrainOptions& o) {
  check_log(o);
  std::vector<fs::path> inputs = o.data;
  inputs.insert(inputs.end(), o.val_data.begin(), o.val_data.end());
  if (!o.model_config.empty()) inputs.push_back(o.model_config);
  if (o.tokenizer != "bytes" && !o.tokenizer.empty()) inputs.emplace_back(o.tokenizer);
  for (const fs::path& input : inputs) {
    if (!o.log.empty() && same_path(o.log, input)) {
      throw UsageError("{}: --log {} would overwrite what is read", o.command, printable(o.log.native()));
    }
    for (const char* name : kOwnFiles) {
      if (!same_path(o.out / name, input)) continue;
      throw UsageError("{}: --out {} would overwrite {}, which is read; give another --out", o.command,
                       printable(o.out.native()), printable(input.native()));
    }
  }
  for (const std::vector<fs::path>* data : {&o.data, &o.val_data}) {
    for (const fs::path& path : *data) {
      if (!path_is_directory(path)) continue;
      for (const auto& [option, written] :
           {std::pair("--out", o.out), std::pair("--log", o.log), std::pair("--tensorboard", o.tensorboard)}) {
        if (written.empty() || !is_within(written, path)) continue;
        throw UsageError("{}: {} {} lies in {}, of which all files are read; give another", o.command, option,
                         printable(written.native()), printable(path.native()));
      }
    }
  }
  if (!o.init.empty() && same_path(o.init, o.out)) {
    throw UsageError("{}: --init and --out are both {}; give another --out", o.command, printable(o.out.native()));
  }
}

void check_device(const TrainOptions& o, const ModelConfig& config) {
  if (o.device == nullptr) return;
  const auto refuse = [&](std::string_view what, std::string_view instead) {
    throw UsageError("{}: {} on the CPU alone so far: {}", o.command, what, instead);
  };
  if (!config.is_mla()) refuse("models with grouped queries are trained", "leave --device out");
  if (config.is_sparse() && resolve_dsa(o, config) != Dsa::off) {
    refuse("sparse attention and its indexers are trained", "leave --device out, or give --dsa off");
  }
  if (is_fp8(o.precision)) refuse("products in FP8 are made", "give --precision bf16 or f32, or leave --device out");
  if (o.check_memory) refuse("--check-memory checks weights", "leave it out; GPUs for servers have ECC memory");
}

Settings settings_of(const TrainOptions& o, const ModelConfig& c, Balance balance, double alpha) {
  const char* const schedules[] = {"constant", "cosine", "wsd"};
  Settings settings = {{kInstructionSet, o.device != nullptr ? o.device->name : isa_name(cpu_isa())},
                       {"seed", fmt::to_string(o.seed)},
                       {"precision", precision_name(o.precision)},
                       {"moments", format_traits(o.moments).name},
                       {"seq-len", fmt::to_string(o.seq_len)},
                       {"batch-size", fmt::to_string(o.batch_size)},
                       {"extend-seq-len", fmt::to_string(o.extend_seq_len)},
                       {"extend-at", fmt::to_string(o.extend_at)},
                       {"micro-batch", fmt::to_string(o.micro_batch)},
                       {"batch-start", fmt::to_string(o.batch_start)},
                       {"batch-ramp", fmt::to_string(o.batch_ramp)},
                       {"mask-documents", o.mask_documents ? "yes" : "no"},
                       {"lr", fmt::to_string(o.lr.peak)},
                       {"min-lr", fmt::to_string(o.lr.min)},
                       {"warmup", fmt::to_string(o.lr.warmup)},
                       {"schedule", schedules[static_cast<int>(o.lr.schedule)]},
                       {"decay-fraction", fmt::to_string(o.lr.decay_fraction)},
                       {"weight-decay", fmt::to_string(o.weight_decay)},
                       {"beta1", fmt::to_string(o.beta1)},
                       {"beta2", fmt::to_string(o.beta2)},
                       {"eps", fmt::to_string(o.eps)},
                       {"ema-decay", fmt::to_string(o.ema_decay)},
                       {"clip", fmt::to_string(o.clip)},
                       {"spike-deviations", fmt::to_string(o.spike_deviations)},
                       {"balance", name_in(kBalances, balance)},
                       {"bias-update-speed", fmt::to_string(o.bias_update_speed)},
                       {"bias-freeze", fmt::to_string(o.bias_freeze)},
                       {"balance-alpha", fmt::to_string(alpha)},
                       {"mtp-weight", fmt::to_string(o.mtp_weight)},
                       {"mtp-weight-late", fmt::to_string(o.mtp_late_at > 0 ? o.mtp_weight_late : o.mtp_weight)},
                       {"mtp-late-at", fmt::to_string(o.mtp_late_at)}};
  if (c.is_sparse()) settings["dsa"] = name_in(kDsas, resolve_dsa(o, c));
  const auto config = nlohmann::json::parse(config_json(c, Format::f32));
  for (const auto& [key, value] : config.items()) settings["the model's " + key] = value.dump();
  return settings;
}

Balance resolve_balance(const TrainOptions& o, const ModelConfig& config) {
  const bool has_bias = config.router.method == TopkMethod::noaux_tc;
  if (o.balance == Balance::bias && !has_bias) {
    throw UsageError(
        "{}: --balance bias needs a model with e_score_correction_bias (topk_method noaux_tc); use --balance aux",
        o.command);
  }
  if (o.balance != Balance::automatic) return o.balance;
  return has_bias ? Balance::bias : Balance::aux;
}

Dsa resolve_dsa(const TrainOptions& o, const ModelConfig& config) {
  if (o.dsa == Dsa::sparse && !config.is_sparse()) {
    throw UsageError("{}: --dsa sparse needs a model with an indexer (deepseek_v32): give it one by --dsa warmup",
                     o.command);
  }
  if (o.dsa != Dsa::automatic) return o.dsa;
  return config.is_sparse() ? Dsa::sparse : Dsa::off;
}

Dsa dsa_named(const std::string& name) { return value_in(kDsas, name, "--dsa", "auto, off, warmup or sparse"); }

Precision precision_named(const std::string& name) {
  return value_in(kPrecisions, name, "--precision", "f32, bf16, fp8 or fp8-per-tensor");
}

const char* precision_name(Precision precision) { return name_in(kPrecisions, precision); }

Balance balance_named(const std::string& name) {
  return value_in(kBalances, name, "--balance", "bias, aux, aux-batch or none");
}

Recompute recompute_named(const std::string& name) {
  return value_in(kRecomputes, name, "--recompute", "none, selective or full");
}

}  // namespace fathom
