// FP8 codes, scales and products against those of an independent implementation (tests/data/number/fp8.safetensors).
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "checkpoint/safetensors.h"
#include "number/formats.h"

namespace fathom {
namespace {

class Fp8Fixture : public testing::Test {
 protected:
  SafetensorsFile file_{std::filesystem::path(FATHOM_TEST_DATA) / "number" / "fp8.safetensors"};

  const StoredTensor& stored(const std::string& name) {
    const StoredTensor* t = file_.find("fp8." + name);
    if (t == nullptr) throw Error("no fp8.{} in the fixture", name);
    return *t;
  }
  std::vector<float> floats(const std::string& name) {
    std::vector<float> values(stored(name).data.size() / sizeof(float));
    std::memcpy(values.data(), stored(name).data.data(), stored(name).data.size());
    return values;
  }
  std::vector<uint8_t> codes(const std::string& name) {
    std::vector<uint8_t> values(stored(name).data.size());
    std::memcpy(values.data(), stored(name).data.data(), values.size());
    return values;
  }

  // Codes and scales of `name` in blocks, exactly; returns the dequantized matrix.
  std::vector<float> check_blocks(const std::string& name, const std::string& prefix, const std::string& scales_name,
                                  BlockShape block, bool ue8m0, float floor) {
    const auto values = floats(name);
    const int64_t rows = stored(name).shape[0], cols = stored(name).shape[1];
    const auto want_scales = floats(prefix + scales_name);
    std::vector<uint8_t> got(values.size());
    std::vector<float> scales(want_scales.size()), restored(values.size());
    quantize_f8_blocks(got.data(), scales.data(), values.data(), rows, cols, block, ue8m0, floor);
    EXPECT_EQ(scales, want_scales) << prefix << name;
    EXPECT_EQ(got, codes(prefix + name + "_codes")) << prefix << name;
    dequantize_f8_blocks(restored.data(), got.data(), scales.data(), 0, rows, cols, block);
    return restored;
  }
};

TEST_F(Fp8Fixture, DecodesEveryCode) {
  const auto table = floats("decode_table");
  ASSERT_EQ(table.size(), 256u);
  for (size_t code = 0; code < 256; ++code) {
    const float x = f8_e4m3_to_f32(static_cast<uint8_t>(code));
    if (std::isnan(table[code])) {
      EXPECT_TRUE(std::isnan(x)) << code;
    } else {
      EXPECT_EQ(x, table[code]) << code;
    }
  }
}

TEST_F(Fp8Fixture, EncodesCodesMidpointsAndTheirNeighbours) {
  const auto values = floats("encode_x");
  const auto want = codes("encode_code");
  ASSERT_EQ(values.size(), want.size());
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(f32_to_f8_e4m3(values[i]), want[i]) << values[i];
}

TEST_F(Fp8Fixture, BlocksAndProducts) {
  for (const bool ue8m0 : {false, true}) {
    const std::string prefix = ue8m0 ? "ue8m0_" : "";
    const auto act = check_blocks("act", prefix, "act_scales", {1, 128}, ue8m0, kActivationAmaxFloor);
    const auto weight = check_blocks("weight", prefix, "weight_scale_inv", {128, 128}, ue8m0, 0);
    const auto want = floats(prefix + "gemm");
    const auto depth = static_cast<size_t>(stored("act").shape[1]),
               out = static_cast<size_t>(stored("weight").shape[0]);
    double largest = 0;
    for (const float x : want) largest = std::max(largest, std::abs(static_cast<double>(x)));
    for (size_t i = 0; i < want.size(); ++i) {
      double sum = 0;
      for (size_t k = 0; k < depth; ++k)
        sum += static_cast<double>(act[i / out * depth + k]) * weight[i % out * depth + k];
      EXPECT_NEAR(sum, want[i], 1e-6 * largest) << prefix << i;
    }
  }
}

}  // namespace
}  // namespace fathom
