// Tensors of tests/data/ops, written by an independent implementation: rotary embedding and routers.
#pragma once

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "base/json.h"
#include "test_tensors.h"

namespace fathom {

class OpFixtures {
 public:
  OpFixtures() : parameters_(JsonDocument::read(folder() + "ops.json", 1 << 20)) {
    std::ifstream file(folder() + "ops.safetensors", std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
    uint64_t header_bytes = 0;
    std::memcpy(&header_bytes, bytes_.data(), 8);
    data_begin_ = 8 + header_bytes;
    header_ = std::make_unique<JsonDocument>(JsonDocument::parse(bytes_.substr(8, header_bytes), "ops.safetensors"));
  }

  // A copy; vectors have rank 1.
  Tensor operator[](const std::string& name) const {
    const simdjson::dom::element entry = header_->root()[name];
    std::vector<int64_t> shape;
    for (const auto n : entry["shape"].get_array()) shape.push_back(n.get_int64());
    const bool is_f32 = entry["dtype"].get_string().value() == "F32";
    Tensor t(nullptr, is_f32 ? Format::f32 : Format::i32, shape.data(), static_cast<int>(shape.size()));
    t.data = test_memory<float>(t.size(), 0);
    const uint64_t begin = entry["data_offsets"].at(0).get_uint64();
    std::memcpy(t.data, bytes_.data() + data_begin_ + begin, static_cast<size_t>(t.size_bytes()));
    return t;
  }

  // The parameters of a case, such as "/rope/yarn_v3".
  simdjson::dom::element parameters(const std::string& pointer) const {
    return parameters_.root().at_pointer(pointer).value();
  }

 private:
  static std::string folder() { return std::string(FATHOM_TEST_DATA) + "/ops/"; }
  JsonDocument parameters_;
  std::string bytes_;
  size_t data_begin_ = 0;
  std::unique_ptr<JsonDocument> header_;
};

}  // namespace fathom
