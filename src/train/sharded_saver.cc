#include "train/sharded_saver.h"

#include <chrono>
#include <cstring>
#include <utility>

#include "base/terminal.h"

namespace fathom {
namespace {

// Makes what the tensors show of the state a copy in `memory`, which is taken again where it has the size.
void copy_tensors(RankFiles& files, Buffer& memory) {
  constexpr size_t kLine = 64;
  const auto room = [](const TensorToWrite& tensor) {
    return (static_cast<size_t>(tensor.view.size_bytes()) + kLine - 1) / kLine * kLine;
  };
  size_t bytes = 0;
  for (const auto* tensors : {&files.model, &files.beside}) {
    for (const TensorToWrite& tensor : *tensors) bytes += room(tensor);
  }
  if (memory.size() != bytes) memory = Buffer(bytes);
  auto* at = static_cast<std::byte*>(memory.data());
  for (auto* tensors : {&files.model, &files.beside}) {
    for (TensorToWrite& tensor : *tensors) {
      FATHOM_CHECK(tensor.view.rows() == 1 || tensor.view.row_stride == tensor.view.cols());
      std::memcpy(at, tensor.view.data, static_cast<size_t>(tensor.view.size_bytes()));
      tensor.view.data = at;
      at += room(tensor);
    }
  }
}

}  // namespace

ShardedSaver::ShardedSaver(std::filesystem::path out, const RankState& state, const Tokenizer& tokenizer,
                           Settings settings, SaverOptions options, int64_t saved_step)
    : out_(std::move(out)),
      state_(state),
      tokenizer_(tokenizer),
      settings_(std::move(settings)),
      options_(options),
      saved_step_(saved_step) {
  // What the other ranks leave of a machine's memory no rank knows.
  if (options_.mode == SaveMode::automatic) options_.mode = SaveMode::sync;
  if (state_.all.index == 0) remove_leftovers(out_);
}

void ShardedSaver::begin(const TrainedState& numbers, bool copies) {
  const bool is_first = state_.all.index == 0;
  state_.all.comm->tell(fmt::format("saving step {}", numbers.step));
  begin_s_ = monotonic_s();
  copy_state(numbers_, numbers);
  phase_ = Phase::writing;
  launch_ = copies ? std::launch::async : std::launch::deferred;
  running_ = {};
  std::string failed;
  try {
    for (const Stage& stage : state_.stages) check_finite(stage.parameters.weights, state_.config, numbers.step);
    if (is_first) begin_checkpoint(out_, numbers.step);
  } catch (const std::exception& error) {
    failed = error.what();
  }
  fail_together(state_.all, failed);
  files_ = files_of_rank(state_, Format::f32);
  if (copies) copy_tensors(files_, copy_);
  running_ = std::async(launch_, [this] {
    const std::filesystem::path partial = partial_checkpoint(out_, numbers_.step);
    write_model_files(partial, files_);
    write_files_beside(partial, files_);
  });
}

void ShardedSaver::commit() const {
  const std::filesystem::path partial = partial_checkpoint(out_, numbers_.step);
  tokenizer_.save(partial);
  commit_rank_files(partial, state_.config, Format::f32, files_);
  write_trainer(partial, numbers_, settings_);
  finish_checkpoint(out_, numbers_.step);
}

// Of what all ranks have done.
void ShardedSaver::advance() {
  const bool is_first = state_.all.index == 0;
  std::string failed;
  try {
    running_.get();
  } catch (const std::exception& error) {
    failed = error.what();
    if (failed.empty()) failed = "unknown";
  }
  fail_together(state_.all, failed);
  if (std::exchange(phase_, phase_ == Phase::writing ? Phase::committing : Phase::idle) == Phase::writing) {
    running_ = std::async(launch_, [this, is_first] {
      if (is_first) commit();
    });
    return;
  }
  saved_step_ = numbers_.step;
  cleaned_ = false;
  if (is_first) log("step {}: saved in {:.2f} s", saved_step_, monotonic_s() - begin_s_);
}

template <class Work>
void ShardedSaver::attempt(const Work& work) {
  try {
    work();
  } catch (const FailedTogether& error) {
    phase_ = Phase::idle;
    if (state_.all.index == 0) drop_checkpoint(out_, numbers_.step);
    const std::string why = no_checkpoint(out_, numbers_.step, saved_step_, error.what());
    if (is_last_ || options_.on_failure == SaveFailure::stop) throw FailedTogether(why, error.tells);
    if (error.tells) log("{}; training goes on", why);
  }
}

void ShardedSaver::wait() {
  while (phase_ != Phase::idle) attempt([&] { advance(); });
}

void ShardedSaver::poll() {
  if (phase_ == Phase::idle) return;
  const bool is_ready = running_.wait_for(std::chrono::seconds(0)) != std::future_status::timeout;
  if (!is_on_any(state_.all, !is_ready)) attempt([&] { advance(); });
}

void ShardedSaver::save(const TrainedState& numbers) {
  wait();
  const bool copies = options_.mode == SaveMode::async;
  attempt([&] { begin(numbers, copies); });
  if (!copies) wait();
}

void ShardedSaver::save_last(const TrainedState& numbers) {
  is_last_ = true;
  wait();
  if (saved_step_ < numbers.step) attempt([&] { begin(numbers, /*copies=*/false); });
  wait();
  remove_needless();
}

void ShardedSaver::taken(int64_t step) {
  if (saved_step_ < step) remove_needless();
}

void ShardedSaver::remove_needless() {
  if (std::exchange(cleaned_, true) || state_.all.index != 0) return;
  const std::string trouble = remove_old_checkpoints(out_, saved_step_, options_.keep);
  if (!trouble.empty()) log("an old checkpoint stays: {}", trouble);
}

}  // namespace fathom
