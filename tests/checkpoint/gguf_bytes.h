// The bytes of GGUF files, right or wrong: taken apart, changed and put together again.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace fathom::test {

template <class T>
std::string bytes_of(T x) {
  return {reinterpret_cast<const char*>(&x), sizeof x};
}
inline std::string gguf_text(const std::string& text) { return bytes_of(uint64_t{text.size()}) + text; }

// Values with their type in front.
inline std::string u32(uint32_t x) { return bytes_of(uint32_t{4}) + bytes_of(x); }
inline std::string i32(int32_t x) { return bytes_of(uint32_t{5}) + bytes_of(x); }
inline std::string f32(float x) { return bytes_of(uint32_t{6}) + bytes_of(x); }
inline std::string flag(uint8_t x) { return bytes_of(uint32_t{7}) + bytes_of(x); }
inline std::string text(const std::string& x) { return bytes_of(uint32_t{8}) + gguf_text(x); }
inline std::string list(uint32_t type, uint64_t n, const std::string& items) {
  return bytes_of(uint32_t{9}) + bytes_of(type) + bytes_of(n) + items;
}
inline std::string texts(const std::vector<std::string>& list_of) {
  std::string items;
  for (const std::string& x : list_of) items += gguf_text(x);
  return list(8, list_of.size(), items);
}

inline std::string tensor_info(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type,
                               uint64_t offset) {
  std::string out = gguf_text(name) + bytes_of(static_cast<uint32_t>(dims.size()));
  for (const uint64_t n : dims) out += bytes_of(n);
  return out + bytes_of(type) + bytes_of(offset);
}

inline std::string gguf(uint64_t n_values, const std::string& values, uint64_t n_tensors, const std::string& infos,
                        const std::string& data, uint32_t version = 3, size_t alignment = 32) {
  std::string out = "GGUF" + bytes_of(version) + bytes_of(n_tensors) + bytes_of(n_values) + values + infos;
  out.resize((out.size() + alignment - 1) / alignment * alignment);
  return out + data;
}

// A sound file of the alignment 32, taken apart.
struct GgufParts {
  struct Tensor {
    std::vector<uint64_t> dims;  // columns first
    uint32_t type;
    std::string data;
  };
  std::map<std::string, std::string> values;  // with their type
  std::map<std::string, Tensor> tensors;

  explicit GgufParts(const std::string& file) {
    const char* p = file.data() + 8;
    const auto take = [&]<class T>(T x) {
      std::memcpy(&x, p, sizeof x);
      p += sizeof x;
      return x;
    };
    const auto n_tensors = take(uint64_t{}), n_values = take(uint64_t{});
    const auto take_text = [&] {
      const auto n = take(uint64_t{});
      p += n;
      return std::string(p - n, n);
    };
    const auto skip = [&](uint32_t type) {
      constexpr size_t kSizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
      if (type == 8) {
        take_text();
      } else {
        p += kSizes[type];
      }
    };
    for (uint64_t i = 0; i < n_values; ++i) {
      const std::string key = take_text();
      const char* begin = p;
      if (const auto type = take(uint32_t{}); type == 9) {
        const auto item = take(uint32_t{});
        for (uint64_t n = take(uint64_t{}); n > 0; --n) skip(item);
      } else {
        skip(type);
      }
      values[key] = {begin, p};
    }
    std::map<uint64_t, std::string> by_offset;
    for (uint64_t i = 0; i < n_tensors; ++i) {
      const std::string name = take_text();
      Tensor& tensor = tensors[name];
      tensor.dims.resize(take(uint32_t{}));
      for (uint64_t& n : tensor.dims) n = take(uint64_t{});
      tensor.type = take(uint32_t{});
      by_offset[take(uint64_t{})] = name;
    }
    const size_t blob = (static_cast<size_t>(p - file.data()) + 31) / 32 * 32;
    for (auto at = by_offset.begin(); at != by_offset.end(); ++at) {
      const auto next = std::next(at);
      const size_t end = next == by_offset.end() ? file.size() - blob : next->first;
      tensors[at->second].data = file.substr(blob + at->first, end - at->first);  // with its padding
    }
  }

  std::string bytes() const {
    std::string keys, infos, data;
    for (const auto& [key, value] : values) keys += gguf_text(key) + value;
    for (const auto& [name, tensor] : tensors) {
      infos += tensor_info(name, tensor.dims, tensor.type, data.size());
      data += tensor.data;
      data.resize((data.size() + 31) / 32 * 32);
    }
    return gguf(values.size(), keys, tensors.size(), infos, data);
  }
};

}  // namespace fathom::test
