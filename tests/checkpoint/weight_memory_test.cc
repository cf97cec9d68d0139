// Wherever weights are moved, they are the same weights.
#include "checkpoint/weight_memory.h"

#include <gtest/gtest.h>

#include <cstring>

#include "checkpoint/tiny_model.h"

namespace fathom {
namespace {

class WeightMemory : public testing::Test {
 protected:
  WeightMemory() {
    ModelConfig config = tiny_mtp();
    config.hidden_size = 256;
    config.moe_intermediate_size = 64;
    save_model(source_, config, random_model(config).parameters.weights, {Format::bf16});
    convert_model(source_, packed_, *find_recipe("q8_0"), pool_);
  }
  // All weights, one behind the other.
  static std::vector<std::byte> bytes_of(const PackedModel& model) {
    ModelWeights weights = model.weights;
    std::vector<std::byte> all;
    for_each_weight(weights, [&](WeightKind, const Tensor& slot) {
      if (!slot) return;
      const auto* data = static_cast<const std::byte*>(slot.data);
      all.insert(all.end(), data, data + slot.size_bytes());
    });
    return all;
  }

  const TemporaryDirectory scratch_;
  const std::filesystem::path source_ = scratch_.path() / "source", packed_ = scratch_.path() / "packed";
  ThreadPool pool_{3};
};

TEST_F(WeightMemory, IsAMappingOfPackedDirectoriesAlone) {
  const PackedModel mapped = load_packed_model(packed_, pool_), packed = load_packed_model(source_, pool_);
  EXPECT_TRUE(is_mapped(mapped));
  EXPECT_TRUE(shows_residency(mapped));
  EXPECT_FALSE(is_mapped(packed));
}

TEST_F(WeightMemory, IsKnownBeforeWeightsArePacked) {
  const PackedModel packed = load_packed_model(source_, pool_);
  EXPECT_EQ(weight_bytes_when_packed(open_checkpoint(source_), packed.config), weight_bytes(packed.weights));
  const PackedModel mapped = load_packed_model(packed_, pool_);
  int64_t stored = 0;
  for (const StoredTensor* tensor : mapped.stored) stored += static_cast<int64_t>(tensor->data.size());
  EXPECT_EQ(weight_bytes(mapped.weights), stored);
}

TEST_F(WeightMemory, InHugePagesHoldsTheSameBytesAndNoFiles) {
  PackedModel model = load_packed_model(packed_, pool_);
  const std::vector<std::byte> before = bytes_of(model);
  move_to_huge_pages(model, pool_);
  EXPECT_FALSE(is_mapped(model));
  EXPECT_EQ(bytes_of(model), before);
  ModelWeights weights = model.weights;
  for_each_weight(weights, [&](WeightKind, const Tensor& slot) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(slot.data) % kAlignment, 0U);
  });
  move_to_huge_pages(model, pool_);  // there already
  EXPECT_EQ(bytes_of(model), before);
}

TEST_F(WeightMemory, LockedIsStillTheSame) {
  const PackedModel model = load_packed_model(packed_, pool_);
  const std::vector<std::byte> before = bytes_of(model);
  try {
    lock_weights(model);
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  EXPECT_EQ(bytes_of(model), before);
}

TEST(MemoryForModel, LeavesSomeForTheRest) {
  EXPECT_EQ(memory_for_model(1600), 1500U);
  EXPECT_EQ(memory_for_model(0), 0U);
}

}  // namespace
}  // namespace fathom
