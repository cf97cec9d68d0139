// Reading ahead counts what it says, asks for what is missing, and changes no number.
#include "model/expert_reading.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>

#include "base/file.h"
#include "base/residency.h"
#include "model/tiny_models.h"
#include "temporary_directory.h"

namespace fathom {
namespace {

struct Machine {
  ThreadPool pool{2};
  Arena arena;
  Context ctx{pool, arena};
};

// Experts in a file that is not in memory: a page for gate_up and one for down of each.
struct ExpertsOnDisk {
  static constexpr int64_t kExperts = 8, kPageBytes = 4096, kHidden = 16, kInter = kPageBytes / 4 / kHidden;
  test::TemporaryDirectory folder;
  MappedFile file;
  MoeWeights w;

  ExpertsOnDisk() : file(write()) {
    auto* data = const_cast<std::byte*>(file.bytes().data());  // NOLINT: weights are views to read
    w.gate_up = Tensor(data, Format::f32, {kExperts, kInter, kHidden});
    w.down = Tensor(data + kExperts * kPageBytes, Format::f32, {kExperts, kHidden, kInter});
    // Without this the first page that is read brings its neighbours.
    expect_scattered_reads(file.bytes());
  }
  std::filesystem::path write() const {
    const auto path = folder.write("experts", std::string(2 * kExperts * kPageBytes, '\0'));
    const int fd = open(path.c_str(), O_RDWR);
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    return path;
  }
  int64_t resident(int64_t begin_page, int64_t n) const {
    return resident_bytes(file.bytes().subspan(static_cast<size_t>(begin_page * kPageBytes),
                                               static_cast<size_t>(n * kPageBytes))) /
           kPageBytes;
  }
  bool arrives(int64_t page) const {
    for (int i = 0; i < 5000 && resident(page, 1) == 0; ++i) usleep(1000);
    return resident(page, 1) == 1;
  }
};

TEST(ExpertReading, ReadsWhatIsChosenAndNothingElse) {
  const ExpertsOnDisk disk;
  if (disk.resident(0, 16) != 0) GTEST_SKIP() << "the file system keeps its files in memory";
  int32_t ids[] = {2, 5, 2, 6};  // of two tokens
  const Tensor topk_ids(ids, Format::i32, {2, 2});
  ExpertReading reading;
  read_chosen(reading, disk.w, topk_ids);
  constexpr int64_t kChosen = int64_t{3} * 2 * ExpertsOnDisk::kPageBytes;
  EXPECT_EQ(reading.seen.chosen, kChosen);
  EXPECT_EQ(reading.seen.resident, 0);
  EXPECT_EQ(reading.seen.hit_rate(), 0);
  for (const int64_t page : {2, 5, 6, 8 + 2, 8 + 5, 8 + 6}) EXPECT_TRUE(disk.arrives(page)) << page;
  EXPECT_EQ(disk.resident(0, 16), 6);
  read_chosen(reading, disk.w, topk_ids);
  EXPECT_EQ(reading.seen.chosen, 2 * kChosen);
  EXPECT_EQ(reading.seen.hit_rate(), 0.5);
}

TEST(ExpertReading, StopsWhereMoreWouldPushOutWhatHasCome) {
  const ExpertsOnDisk disk;
  if (disk.resident(0, 16) != 0) GTEST_SKIP() << "the file system keeps its files in memory";
  int32_t ids[] = {1, 3};
  ExpertReading reading{.max_bytes_ahead = 3 * ExpertsOnDisk::kPageBytes};
  read_chosen(reading, disk.w, Tensor(ids, Format::i32, {1, 2}));
  for (const int64_t page : {1, 8 + 1, 3}) EXPECT_TRUE(disk.arrives(page)) << page;
  EXPECT_EQ(disk.resident(8 + 3, 1), 0);
  EXPECT_EQ(reading.seen.chosen, 4 * ExpertsOnDisk::kPageBytes);
}

TEST(ExpertReading, TheNextRouterIsAskedForTheStreamAsItIs) {
  const ExpertsOnDisk disk;
  if (disk.resident(0, 16) != 0) GTEST_SKIP() << "the file system keeps its files in memory";
  Machine machine;
  ModelConfig config = tiny_v2();
  config.router = {.n_routed_experts = ExpertsOnDisk::kExperts,
                   .num_experts_per_tok = 2,
                   .scoring = Scoring::softmax,
                   .method = TopkMethod::greedy};
  constexpr int64_t kHidden = ExpertsOnDisk::kHidden;
  LayerWeights next;
  next.moe = disk.w;
  next.moe.gate = new_f32(machine.ctx, {ExpertsOnDisk::kExperts, kHidden});
  next.post_attention_norm = new_f32(machine.ctx, {kHidden});
  const Tensor x = new_f32(machine.ctx, {1, kHidden});
  for (int64_t d = 0; d < kHidden; ++d) next.post_attention_norm.f32()[d] = x.f32()[d] = 1;
  for (int64_t e = 0; e < ExpertsOnDisk::kExperts; ++e) {
    for (int64_t d = 0; d < kHidden; ++d) next.moe.gate.f32(e, d) = e == 4 || e == 7 ? 1.0f : 0.0f;
  }
  ExpertReading reading;
  read_predicted(machine.ctx, reading, config, next, x);
  for (const int64_t page : {4, 7, 8 + 4, 8 + 7}) EXPECT_TRUE(disk.arrives(page)) << page;
  EXPECT_EQ(disk.resident(0, 16), 4);
  EXPECT_EQ(reading.seen.chosen, 0) << "a guess is no choice";

  // So many tokens want every expert anyway, and a dense layer has none.
  const Tensor many = new_f32(machine.ctx, {4, kHidden});
  std::memset(many.data, 0, static_cast<size_t>(many.size_bytes()));
  read_predicted(machine.ctx, reading, config, next, many);
  read_predicted(machine.ctx, reading, config, LayerWeights(), x);
  EXPECT_EQ(disk.resident(0, 16), 4);
}

TEST(ExpertReading, ChangesNoNumberAndCountsEveryMoeLayer) {
  Machine machine;
  const ModelConfig config = tiny_v3();
  const Parameters p = tiny_parameters(config);
  Model model = make_model(config, p.weights);
  const std::vector<std::vector<int32_t>> sequence = {random_ids(1, config.vocab_size, 3)};
  const Batch batch = make_batch(machine.ctx, sequence);
  const Tensor plain = forward(machine.ctx, model, batch);
  ExpertReading reading;
  model.reading = &reading;
  const Tensor read = forward(machine.ctx, model, batch);
  EXPECT_EQ(std::memcmp(plain.data, read.data, static_cast<size_t>(plain.size_bytes())), 0);
  const MoeWeights& moe = p.weights.layers[1].moe;
  const int64_t expert_bytes = moe.gate_up[0].size_bytes() + moe.down[0].size_bytes();
  EXPECT_EQ(reading.seen.chosen, 2 * config.router.num_experts_per_tok * expert_bytes);
  EXPECT_EQ(reading.seen.hit_rate(), 1) << "what was allocated and filled is in memory";
}

}  // namespace
}  // namespace fathom
