#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "checkpoint/tiny_model.h"

namespace fathom {
namespace {

using testing::HasSubstr;

std::string file_of(const std::string& header, size_t data_bytes) {
  const uint64_t size = header.size();
  std::string file(reinterpret_cast<const char*>(&size), sizeof size);
  return file + header + std::string(data_bytes, '\1');
}

// The reason for which a file of these bytes is refused.
std::string refusal(const std::string& file) {
  try {
    const SafetensorsFile read(std::as_bytes(std::span(file)), "f");
    // Whatever is accepted lies inside the file.
    size_t sum = 0;
    for (const StoredTensor& t : read.tensors()) {
      for (const std::byte b : t.data) sum += static_cast<size_t>(b);
    }
    return sum < SIZE_MAX ? "(accepted)" : "";
  } catch (const Error& error) {
    return error.what();
  }
}

struct Case {
  std::string header;
  size_t data_bytes;
  const char* message;
};

std::string entry(const std::string& fields) { return "{\"t\":{" + fields + "}}"; }

TEST(Safetensors, MalformedHeadersAreRefusedWithTheirReason) {
  const std::string f32 = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  const Case cases[] = {
      {entry(f32), 8, "(accepted)"},
      {"{}", 0, "(accepted)"},
      {"{}      ", 0, "(accepted)"},
      {R"({"t":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", 4, "(accepted)"},
      {R"({"t":{"dtype":"F32","shape":[0,5],"data_offsets":[0,0]}})", 0, "(accepted)"},
      {R"({"t":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}})", 1, "(accepted)"},
      {R"({"__metadata__":{"format":"pt"}})", 0, "(accepted)"},
      {R"({"b":{"dtype":"U8","shape":[3],"data_offsets":[1,4]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
       4, "(accepted)"},
      {"", 0, "does not begin with {"},
      {" {}", 0, "does not begin with {"},
      {"[]", 0, "does not begin with {"},
      {"\"x\"", 0, "does not begin with {"},
      {"{", 0, "not valid JSON"},
      {"{}}", 0, "not valid JSON"},
      {"{} x", 0, "not valid JSON"},
      {"{\"a\"}", 0, "not valid JSON"},
      {"{\"a\":1,}", 0, "not valid JSON"},
      {"{\"\xff\":1}", 0, "not valid JSON"},
      {"{\"a\xc0\xaf\":1}", 0, "not valid JSON"},
      {"{\"a\n\":1}", 0, "not valid JSON"},
      {std::string("{}\0", 3), 0, "not valid JSON"},
      {"{\"a\":" + std::string(70, '[') + std::string(70, ']') + "}", 0, "nested deeper"},
      {"{\"a\":1}", 0, "tensor a: its header entry is not an object"},
      {"{\"a\":null}", 0, "tensor a: its header entry is not an object"},
      {"{\"a\":[]}", 0, "tensor a: its header entry is not an object"},
      {"{\"a\":\"F32\"}", 0, "tensor a: its header entry is not an object"},
      {"{\"a\":{}}", 0, "tensor a: dtype is missing"},
      {entry(R"("shape":[2],"data_offsets":[0,8])"), 8, "tensor t: dtype is missing"},
      {entry(R"("dtype":"F32","data_offsets":[0,8])"), 8, "tensor t: shape is missing"},
      {entry(R"("dtype":"F32","shape":[2])"), 8, "tensor t: data_offsets is missing"},
      {entry(R"("dtype":"F32","shape":[2],"offsets":[0,8])"), 8, "unknown key \"offsets\""},
      {entry(f32 + R"(,"strides":[1])"), 8, "unknown key \"strides\""},
      {entry(f32 + R"(,"shape":[2])"), 8, "stands twice"},
      {"{\"t\":{" + f32 + "},\"t\":{" + f32 + "}}", 8, "stands twice"},
      {"{\"t\":{" + f32 + "},\"\\u0074\":{" + f32 + "}}", 8, "stands twice"},
      {entry(R"("dtype":"F33","shape":[2],"data_offsets":[0,8])"), 8, "unknown dtype F33"},
      {entry(R"("dtype":"f32","shape":[2],"data_offsets":[0,8])"), 8, "unknown dtype f32"},
      {entry(R"("dtype":"","shape":[2],"data_offsets":[0,8])"), 8, "unknown dtype"},
      {entry(R"("dtype":4,"shape":[2],"data_offsets":[0,8])"), 8, "dtype is not a string"},
      {entry(R"("dtype":null,"shape":[2],"data_offsets":[0,8])"), 8, "dtype is not a string"},
      {entry(R"("dtype":"F32","shape":2,"data_offsets":[0,8])"), 8, "shape is not a list"},
      {entry(R"("dtype":"F32","shape":null,"data_offsets":[0,8])"), 8, "shape is not a list"},
      {entry(R"("dtype":"F32","shape":[2.0],"data_offsets":[0,8])"), 8, "something other than a whole number"},
      {entry(R"("dtype":"F32","shape":["2"],"data_offsets":[0,8])"), 8, "something other than a whole number"},
      {entry(R"("dtype":"F32","shape":[true],"data_offsets":[0,8])"), 8, "something other than a whole number"},
      {entry(R"("dtype":"F32","shape":[[2]],"data_offsets":[0,8])"), 8, "something other than a whole number"},
      {entry(R"("dtype":"F32","shape":[-2],"data_offsets":[0,8])"), 8, "a number out of range"},
      {entry(R"("dtype":"F32","shape":[-1,-2],"data_offsets":[0,8])"), 8, "a number out of range"},
      {entry(R"("dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,8])"), 8, "a number out of range"},
      {entry(R"("dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8])"), 8, "f: header"},
      {entry(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0, "overflows"},
      {entry(R"("dtype":"F32","shape":[4294967296,4294967298],"data_offsets":[0,8])"), 8, "overflows"},
      {entry(R"("dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8])"), 8, "overflows"},
      {entry(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])"), 0, "overflows"},
      {entry(R"("dtype":"F4","shape":[3],"data_offsets":[0,1])"), 1, "no whole number of bytes"},
      {entry(R"("dtype":"F6_E2M3","shape":[1],"data_offsets":[0,1])"), 1, "no whole number of bytes"},
      {entry(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"), 8,
       "shape [3] of F32 takes 12 bytes, but data_offsets [0, 8] give it 8"},
      {entry(R"("dtype":"F32","shape":[1],"data_offsets":[0,8])"), 8, "takes 4 bytes"},
      {entry(R"("dtype":"F32","shape":[],"data_offsets":[0,8])"), 8, "takes 4 bytes"},
      {entry(R"("dtype":"F32","shape":[0],"data_offsets":[0,8])"), 8, "takes 0 bytes"},
      {entry(R"("dtype":"BF16","shape":[2],"data_offsets":[0,8])"), 8, "takes 4 bytes"},
      {entry(R"("dtype":"I64","shape":[2],"data_offsets":[0,8])"), 8, "takes 16 bytes"},
      {entry(R"("dtype":"F32","shape":[2],"data_offsets":[8,0])"), 8, "end before they begin"},
      {entry(R"("dtype":"F32","shape":[2],"data_offsets":[0])"), 8, "not a list of two numbers"},
      {entry(R"("dtype":"F32","shape":[2],"data_offsets":[0,4,8])"), 8, "not a list of two numbers"},
      {entry(R"("dtype":"F32","shape":[2],"data_offsets":8)"), 8, "not a list of two numbers"},
      {entry(R"("dtype":"F32","shape":[2],"data_offsets":[-8,0])"), 8, "something other than whole numbers"},
      {entry(R"("dtype":"F32","shape":[2],"data_offsets":[0.0,8.0])"), 8, "something other than whole numbers"},
      {entry(R"("dtype":"F32","shape":[2],"data_offsets":["0","8"])"), 8, "something other than whole numbers"},
      {entry(R"("dtype":"F32","shape":[2],"data_offsets":[4,12])"), 12, "leaving a hole behind"},
      {entry(R"("dtype":"F32","shape":[2],"data_offsets":[18446744073709551608,18446744073709551616])"), 8,
       "f: header"},
      {entry(R"("dtype":"F32","shape":[2],"data_offsets":[18446744073709551607,18446744073709551615])"), 8, "hole"},
      {entry(f32), 7, "cut off or is damaged"},
      {entry(f32), 0, "cut off or is damaged"},
      {entry(f32), 9, "1 bytes belong to no tensor"},
      {"{}", 5, "5 bytes belong to no tensor"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
       4, "overlapping"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
       6, "tensor b: its data begins at byte 2, overlapping"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})",
       9, "hole"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[0],"data_offsets":[2,2]}})",
       4, "overlapping"},
      {R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[0],"data_offsets":[9,9]}})",
       4, "hole"},
      {R"({"__metadata__":1})", 0, "__metadata__ is not an object"},
      {R"({"__metadata__":null})", 0, "__metadata__ is not an object"},
      {R"({"__metadata__":{"a":1}})", 0, "\"a\" is not a string"},
      {R"({"__metadata__":{"a":{}}})", 0, "\"a\" is not a string"},
      {R"({"__metadata__":{"a":"1","a":"2"}})", 0, "stands twice"},
      {R"({"a\u001b[31m":1})", 0, "tensor a\\x1b[31m"},
  };
  for (const auto& [header, data_bytes, message] : cases) {
    const std::string file = file_of(header, data_bytes);
    EXPECT_THAT(refusal(file), HasSubstr(message)) << header << " + " << data_bytes;
    EXPECT_EQ(refusal(file).find('\n'), std::string::npos);
  }
}

TEST(Safetensors, LengthsThatLieAreRefused) {
  for (size_t n = 0; n < 8; ++n) EXPECT_THAT(refusal(std::string(n, '\0')), HasSubstr("too few"));
  std::string file = file_of("{}", 0);
  for (const uint64_t size :
       {uint64_t{3}, uint64_t{100'000'000}, uint64_t{100'000'001}, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7}) {
    std::memcpy(file.data(), &size, sizeof size);
    EXPECT_THAT(refusal(file), HasSubstr(size > kMaxSafetensorsHeader ? "above the limit" : "beyond the end")) << size;
  }
}

std::string small_file() {
  const TemporaryDirectory directory;
  float values[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  int32_t ids[3] = {1, 2, 3};
  const TensorToWrite tensors[] = {{"w", Tensor(values, Format::f32, {3, 4}), Format::bf16},
                                   {"columns", Tensor(values, Format::f32, {3, 4}).columns(1, 2), Format::f32},
                                   {"ids", Tensor(ids, Format::i32, {3}), Format::i32}};
  write_safetensors(directory.path() / "f.safetensors", tensors);
  return read_file(directory.path() / "f.safetensors", 1 << 20);
}

TEST(Safetensors, WrittenTensorsAreReadBack) {
  const std::string bytes = small_file();
  const SafetensorsFile file(std::as_bytes(std::span(bytes)), "f");
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.find("w")->shape, (std::vector<int64_t>{3, 4}));
  EXPECT_EQ(file.find("w")->dtype, "BF16");
  float columns[6];
  ASSERT_EQ(file.find("columns")->data.size(), sizeof columns);
  std::memcpy(columns, file.find("columns")->data.data(), sizeof columns);
  EXPECT_THAT(columns, testing::ElementsAre(2, 3, 6, 7, 10, 11));
  EXPECT_EQ(file.find("nothing"), nullptr);
  uint64_t header;
  std::memcpy(&header, bytes.data(), sizeof header);
  EXPECT_EQ(header % 8, 0u);
}

TEST(Safetensors, EveryTruncationAndExtensionIsDetected) {
  const std::string file = small_file();
  for (size_t n = 0; n < file.size(); ++n) EXPECT_NE(refusal(file.substr(0, n)), "(accepted)") << n;
  EXPECT_NE(refusal(file + "x"), "(accepted)");
}

// A flipped bit may rename a tensor or reshape it to the same size; it never leads out of the file.
TEST(Safetensors, EveryFlippedBitIsDetectedOrHarmless) {
  const std::string file = small_file();
  uint64_t header;
  std::memcpy(&header, file.data(), sizeof header);
  int accepted = 0;
  for (size_t i = 0; i < 8 + header; ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = file;
      flipped[i] = static_cast<char>(flipped[i] ^ (1 << bit));
      accepted += refusal(flipped) == "(accepted)";
    }
  }
  EXPECT_LT(accepted, static_cast<int>(header) * 8 / 4);
}

TEST(Safetensors, AFullDiskIsAnErrorThatLeavesNothing) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const TemporaryDirectory directory;
  const auto path = directory.path() / "f.safetensors";
  std::filesystem::create_symlink("/dev/full", path.string() + ".partial");
  float x = 1;
  const TensorToWrite tensor{"x", Tensor(&x, Format::f32, {1}), Format::f32};
  EXPECT_THROW(write_safetensors(path, std::span(&tensor, 1)), Error);
  EXPECT_TRUE(std::filesystem::is_empty(directory.path()));
}

}  // namespace
}  // namespace fathom
