#include "checkpoint/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "checkpoint/gguf_bytes.h"
#include "number/blocks.h"

namespace fathom {
namespace {

using namespace test;  // NOLINT(google-build-using-namespace)
using testing::HasSubstr;

// The reason for which a file of these bytes is refused. Memory of its exact size: one byte beyond it is seen.
std::string refusal(const std::string& file) {
  const std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(file.data()),
                                     reinterpret_cast<const std::byte*>(file.data()) + file.size());
  try {
    const GgufFile read(bytes, "f");
    size_t sum = 0;
    for (const StoredTensor& t : read.tensors()) {
      for (const std::byte b : t.data) sum += static_cast<size_t>(b);
    }
    return sum < SIZE_MAX ? "(accepted)" : "";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("f: "));
    return error.what();
  }
}

std::string with_value(const std::string& value) { return gguf(1, gguf_text("k") + value, 0, "", ""); }
std::string with_tensor(const std::string& info, size_t data_bytes, const std::string& values = "", uint64_t n = 0) {
  return gguf(n, values, 1, info, std::string(data_bytes, '\1'));
}
std::string lists(int depth) {
  std::string value = bytes_of(uint32_t{4}) + bytes_of(uint64_t{1}) + bytes_of(7);
  for (int i = 1; i < depth; ++i) value = bytes_of(uint32_t{9}) + bytes_of(uint64_t{1}) + value;
  return bytes_of(uint32_t{9}) + value;
}

struct Case {
  std::string file;
  const char* message;
};

TEST(Gguf, MalformedFilesAreRefusedWithTheirReason) {
  const std::string huge = bytes_of(~uint64_t{0}), big = bytes_of(uint64_t{1} << 62);
  const std::string t = tensor_info("t", {4}, 0, 0);
  const std::string aligned = gguf_text("general.alignment");
  const Case cases[] = {
      {gguf(0, "", 0, "", ""), "(accepted)"},
      {gguf(0, "", 0, "", "", 2), "(accepted)"},
      {with_tensor(t, 16), "(accepted)"},
      {with_tensor(t, 17), "(accepted)"},
      {with_value(lists(4)), "(accepted)"},
      {gguf(0, "", 2, tensor_info("a", {4}, 0, 32) + tensor_info("b", {8}, 0, 0), std::string(48, '\0')), "(accepted)"},
      // The header.
      {"", "does not begin with GGUF"},
      {"GGU", "does not begin with GGUF"},
      {"GGUF", "the header reaches beyond the end of the file (4 bytes); it was cut off or is damaged"},
      {"ggml" + bytes_of(uint32_t{3}) + std::string(16, '\0'), "does not begin with GGUF"},
      {std::string(4000, '\0'), "does not begin with GGUF"},
      {gguf(0, "", 0, "", "", 0), "GGUF version 0 is not supported"},
      {gguf(0, "", 0, "", "", 1), "GGUF version 1 is not supported; versions 2 and 3 are"},
      {gguf(0, "", 0, "", "", 4), "GGUF version 4 is not supported"},
      {gguf(0, "", 0, "", "", 0x03000000), "big-endian GGUF files are not supported"},
      {"GGUF" + bytes_of(3) + huge + bytes_of(uint64_t{0}), "the number of tensors: 18446744073709551615 of them"},
      {"GGUF" + bytes_of(3) + bytes_of(uint64_t{0}) + huge,
       "the number of metadata keys: 18446744073709551615 of them"},
      {gguf(9, gguf_text("k") + u32(1), 0, "", ""),
       "the number of metadata keys: 9 of them reach beyond the end of the file"},
      // Metadata.
      {gguf(1, huge + std::string(50, 'k'), 0, "", ""), "the metadata reaches beyond the end of the file"},
      {gguf(1, gguf_text("") + u32(1), 0, "", ""), "metadata key 0: \"\" is no name"},
      {gguf(1, gguf_text("a\xff") + u32(1), 0, "", ""), "metadata key 0: \"a\\xff\" is no name"},
      {gguf(1, gguf_text(std::string(70000, 'k')) + u32(1), 0, "", ""), "is no name"},
      {gguf(2, gguf_text("k") + u32(1) + gguf_text("k") + u32(2), 0, "", ""), "the metadata key k stands twice"},
      {with_value(bytes_of(13) + huge), "the metadata value of k has the unknown type 13"},
      {with_value(bytes_of(uint32_t{0xFFFFFFFF}) + huge), "has the unknown type 4294967295"},
      {with_value(flag(2)), "the metadata value of k is neither true nor false"},
      {with_value(bytes_of(8) + huge), "the metadata value of k reaches beyond the end of the file"},
      {with_value(bytes_of(8) + big), "the metadata value of k reaches beyond the end of the file"},
      {with_value(list(4, ~uint64_t{0}, "")), "18446744073709551615 of them reach beyond the end of the file"},
      {with_value(list(12, uint64_t{1} << 61, "")), "2305843009213693952 of them reach beyond the end of the file"},
      {with_value(list(4, 100, "abcd")), "the metadata value of k: 100 of them reach beyond the end of the file"},
      {with_value(list(8, 3, gguf_text("a") + huge + std::string(32, '\0'))), "the metadata value of k reaches beyond"},
      {with_value(list(13, 0, "")), "the metadata value of k has the unknown type 13"},
      {with_value(list(7, 3, std::string("\0\1\2", 3))), "neither true nor false"},
      {with_value(lists(5)), "the metadata value of k has lists nested deeper than 4"},
      {with_value(lists(1000)), "lists nested deeper than 4"},
      {gguf(1, aligned + u32(0), 0, "", ""), "general.alignment is 0, must be a power of two"},
      {gguf(1, aligned + u32(24), 0, "", ""), "general.alignment is 24, must be a power of two"},
      {gguf(1, aligned + u32(0x80000000), 0, "", ""), "general.alignment is 2147483648"},
      {gguf(1, aligned + f32(32), 0, "", ""), "general.alignment is f32, not a whole number"},
      {gguf(1, aligned + text("32"), 0, "", ""), "general.alignment is text, not a whole number"},
      // Tensors.
      {with_tensor(tensor_info("", {4}, 0, 0), 16), "tensor 0: \"\" is no name"},
      {with_tensor(tensor_info(std::string(64, 't'), {4}, 0, 0), 16), "it must have 1 to 63 bytes"},
      {with_tensor(tensor_info("t\xc0\xaf", {4}, 0, 0), 16), "is no name"},
      {with_tensor(tensor_info("a\nb", {0}, 0, 0), 16), "tensor a\\x0ab: dimension 0 has the size 0"},
      {with_tensor(tensor_info("t", {}, 0, 0) + bytes_of(0.0), 16), "tensor t: has 0 dimensions, must have 1 to 4"},
      {with_tensor(tensor_info("t", {1, 1, 1, 1, 1}, 0, 0), 16), "tensor t: has 5 dimensions"},
      {with_tensor(tensor_info("t", {0}, 0, 0), 16), "tensor t: dimension 0 has the size 0"},
      {with_tensor(tensor_info("t", {4, ~uint64_t{0}}, 0, 0), 16),
       "tensor t: dimension 1 has the size 18446744073709551615"},
      {with_tensor(tensor_info("t", {4, uint64_t{1} << 62}, 0, 0), 16), "of F32 overflows"},
      {with_tensor(tensor_info("t", {uint64_t{1} << 62}, 0, 0), 16), "of F32 overflows"},
      {with_tensor(tensor_info("t", {1 << 16, 1 << 16, 1 << 16, 1 << 16}, 0, 0), 16), "of F32 overflows"},
      {with_tensor(tensor_info("t", {(uint64_t{1} << 63) - 32, 2}, 8, 0), 16), "of Q8_0 overflows"},
      {with_tensor(tensor_info("t", {4}, 4, 0), 16), "tensor t: has the unknown type 4"},
      {with_tensor(tensor_info("t", {4}, 77, 0), 16), "tensor t: has the unknown type 77"},
      {with_tensor(tensor_info("t", {48, 2}, 8, 0), 200),
       "rows of 48 numbers are no whole blocks of Q8_0, which hold 32"},
      {with_tensor(tensor_info("t", {128, 2}, 12, 0), 200), "no whole blocks of Q4_K, which hold 256"},
      {with_tensor(t, 15), "tensor t: its 16 bytes from byte 0 of the data on reach beyond the end of the file"},
      {with_tensor(tensor_info("t", {4}, 0, 32), 16), "from byte 32 of the data on reach beyond the end"},
      {with_tensor(tensor_info("t", {4}, 0, ~uint64_t{31}), 16), "reach beyond the end of the file"},
      {with_tensor(tensor_info("t", {4}, 0, 16), 64), "begins at byte 16, which is no multiple of the alignment of 32"},
      {with_tensor(tensor_info("t", {4}, 0, 32), 64, aligned + u32(64), 1), "no multiple of the alignment of 64"},
      {gguf(0, "", 2, t + t, std::string(64, '\0')), "tensor t stands twice"},
      {gguf(0, "", 2, t + tensor_info("u", {4}, 0, 0), std::string(64, '\0')), "inside the data of"},
      {gguf(0, "", 2, tensor_info("a", {12}, 0, 0) + tensor_info("b", {4}, 0, 32), std::string(64, '\0')),
       "tensor b: its data begins at byte 32, inside the data of a"},
      {gguf(0, "", 9, t, ""), "the number of tensors: 9 of them reach beyond the end of the file"},
  };
  for (const Case& c : cases) EXPECT_THAT(refusal(c.file), HasSubstr(c.message));
}

std::string sound_file() {
  const std::string values = gguf_text("a.text") + text("x") + gguf_text("a.list") + texts({"p", "", "q"}) +
                             gguf_text("a.numbers") + list(5, 2, bytes_of(-1) + bytes_of(70000)) +
                             gguf_text("a.number") + f32(1e-6f) + gguf_text("a.flag") + flag(1);
  return gguf(5, values, 2, tensor_info("t", {32, 3}, 8, 0) + tensor_info("u", {2, 3, 5}, 1, 128),
              std::string(188, '\2'));
}

TEST(Gguf, GivesWhatTheFileHolds) {
  const std::string bytes = sound_file();
  const GgufFile file(std::as_bytes(std::span(bytes)), "f");
  EXPECT_EQ(file.text("a.text"), "x");
  EXPECT_EQ(file.texts("a.list"), (std::vector<std::string_view>{"p", "", "q"}));
  EXPECT_EQ(file.integers("a.numbers"), (std::vector<int64_t>{-1, 70000}));
  EXPECT_EQ(file.number("a.number"), 1e-6);  // the decimal that was rounded
  EXPECT_TRUE(file.boolean("a.flag"));
  EXPECT_EQ(file.integer_or("b", 5), 5);
  ASSERT_EQ(file.tensors().size(), 2u);
  const StoredTensor &t = *file.find("t"), &u = *file.find("u");
  EXPECT_EQ(t.dtype, "Q8_0");
  EXPECT_EQ(t.format, Format::q8_0);
  EXPECT_EQ(t.shape, (std::vector<int64_t>{3, 32}));
  EXPECT_EQ(t.data.size(), 3u * 34);
  EXPECT_EQ(u.shape, (std::vector<int64_t>{5, 3, 2}));
  EXPECT_EQ(u.data.data() + u.data.size(), reinterpret_cast<const std::byte*>(bytes.data() + bytes.size()));
  EXPECT_EQ(file.find("v"), nullptr);
}

TEST(Gguf, ValuesOfAnotherTypeAreRefusedByTheirKey) {
  const std::string bytes = sound_file();
  const GgufFile file(std::as_bytes(std::span(bytes)), "f");
  const auto message = [](const auto& read) -> std::string {
    try {
      (void)read();
    } catch (const Error& error) {
      return error.what();
    }
    return "(accepted)";
  };
  EXPECT_EQ(message([&] { return file.integer("b"); }), "f: the metadata key b is missing");
  EXPECT_EQ(message([&] { return file.integer("a.text"); }), "f: a.text is text, not a whole number");
  EXPECT_EQ(message([&] { return file.integer("a.number"); }), "f: a.number is f32, not a whole number");
  EXPECT_EQ(message([&] { return file.number("a.numbers"); }), "f: a.numbers is a list of i32, not a number");
  EXPECT_EQ(message([&] { return file.boolean("a.number"); }), "f: a.number is f32, not true or false");
  EXPECT_EQ(message([&] { return file.text("a.list"); }), "f: a.list is a list of text, not a text");
  EXPECT_EQ(message([&] { return file.texts("a.text"); }), "f: a.text is text, not a list of texts");
  EXPECT_EQ(message([&] { return file.texts("a.numbers"); }), "f: a.numbers is a list of i32, not a list of texts");
  EXPECT_EQ(message([&] { return file.integers("a.list"); }),
            "f: a.list is a list of text, not a list of whole numbers");
  for (const std::string& value : {text("a\xff"), texts({"", "a\xff"})}) {
    const std::string broken = with_value(value);
    const GgufFile f(std::as_bytes(std::span(broken)), "f");
    EXPECT_THAT(message([&] { return f.text("k"); }) + message([&] { return f.texts("k"); }),
                HasSubstr("is not UTF-8 at byte 1"));
  }
  const std::string large = with_value(bytes_of(10) + bytes_of(~uint64_t{0}));
  const GgufFile f(std::as_bytes(std::span(large)), "f");
  EXPECT_EQ(message([&] { return f.integer("k"); }), "f: k is out of range");
}

TEST(Gguf, EveryTruncationIsRefused) {
  const std::string file = sound_file();
  for (size_t n = 0; n < file.size(); ++n) EXPECT_NE(refusal(file.substr(0, n)), "(accepted)") << n;
}

TEST(Gguf, TypesAreAsLargeAsTheirBlocks) {
  for (const Format format : {Format::f32, Format::f16, Format::bf16, Format::q8_0, Format::q4_0, Format::q5_0,
                              Format::q5_1, Format::q4_k, Format::q5_k, Format::q6_k}) {
    const GgmlType& type = ggml_type(format);
    EXPECT_EQ(type.block, format_traits(format).block) << type.name;
    EXPECT_EQ(type.block_bytes, format_traits(format).block_bytes) << type.name;
    EXPECT_EQ(find_ggml_type(type.number), &type);
  }
}

}  // namespace
}  // namespace fathom
