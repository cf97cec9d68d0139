#include "checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/arithmetic.h"
#include "base/json.h"
#include "number/formats.h"

namespace fathom {
namespace {

namespace dom = simdjson::dom;

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and used as it stands");

struct Dtype {
  std::string_view name;
  uint64_t bits;
  std::optional<Format> format;
};

// Every type that present-day writers know.
constexpr Dtype kDtypes[] = {
    {"BOOL", 8, {}},
    {"U8", 8, Format::u8},
    {"I8", 8, {}},
    {"F8_E5M2", 8, {}},
    {"F8_E4M3", 8, Format::f8_e4m3},
    {"F8_E8M0", 8, {}},
    {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},
    {"I16", 16, {}},
    {"U16", 16, {}},
    {"F16", 16, Format::f16},
    {"BF16", 16, Format::bf16},
    {"I32", 32, Format::i32},
    {"U32", 32, {}},
    {"F32", 32, Format::f32},
    {"I64", 64, Format::i64},
    {"U64", 64, {}},
    {"F64", 64, {}},
    {"C64", 64, {}},
    {"F4", 4, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
};

const Dtype* find_dtype(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](const Dtype& d) { return d.name == name; });
  return found == std::end(kDtypes) ? nullptr : found;
}

std::string_view dtype_name(Format format) {
  const auto* found =
      std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](const Dtype& d) { return d.format == format; });
  return found->name;
}

// A header entry before its place in the file is known to be right.
struct Entry {
  StoredTensor tensor;
  uint64_t begin, end;  // bytes behind the header
};

Entry parse_entry(std::string_view name, dom::element value, const std::string& where) {
  const auto fail = [&](const std::string& reason) {
    return Error("{}: tensor {}: {}", where, printable(name), reason);
  };
  dom::object object;
  if (value.get(object)) throw fail("its header entry is not an object");
  Entry entry{{std::string(name), {}, {}, {}, {}}, 0, 0};
  const Dtype* dtype = nullptr;
  bool has_shape = false, has_offsets = false;
  uint64_t n_bits = 1;
  for (const auto [key, field] : object) {
    if (key == "dtype") {
      std::string_view text;
      if (field.get(text)) throw fail("dtype is not a string");
      dtype = find_dtype(text);
      if (dtype == nullptr) throw fail(fmt::format("unknown dtype {}", printable(text, 40)));
    } else if (key == "shape") {
      dom::array dims;
      if (field.get(dims)) throw fail("shape is not a list");
      entry.tensor.shape.reserve(dims.size());
      for (const dom::element dim : dims) {
        uint64_t n;
        if (!dim.is<int64_t>() && !dim.is<uint64_t>()) throw fail("shape holds something other than a whole number");
        if (dim.get(n) || n > INT64_MAX) throw fail("shape holds a number out of range");
        entry.tensor.shape.push_back(static_cast<int64_t>(n));
      }
      has_shape = true;
    } else if (key == "data_offsets") {
      dom::array offsets;
      if (field.get(offsets) || offsets.size() != 2) throw fail("data_offsets is not a list of two numbers");
      if (offsets.at(0).get(entry.begin) || offsets.at(1).get(entry.end)) {
        throw fail("data_offsets holds something other than whole numbers from 0");
      }
      has_offsets = true;
    } else {
      throw fail(fmt::format("unknown key \"{}\" in its header entry", printable(key, 40)));
    }
  }
  if (dtype == nullptr) throw fail("dtype is missing");
  if (!has_shape) throw fail("shape is missing");
  if (!has_offsets) throw fail("data_offsets is missing");
  if (entry.end < entry.begin)
    throw fail(fmt::format("data_offsets end before they begin: [{}, {}]", entry.begin, entry.end));

  for (const int64_t n : entry.tensor.shape) {
    const auto product = checked_multiply(n_bits, static_cast<uint64_t>(n));
    if (!product) throw fail(fmt::format("shape {} overflows", shape_text(entry.tensor.shape)));
    n_bits = *product;
  }
  const auto product = checked_multiply(n_bits, dtype->bits);
  if (!product) throw fail(fmt::format("shape {} of {} overflows", shape_text(entry.tensor.shape), dtype->name));
  if (*product % 8 != 0)
    throw fail(fmt::format("shape {} of {} is no whole number of bytes", shape_text(entry.tensor.shape), dtype->name));
  if (*product / 8 != entry.end - entry.begin) {
    throw fail(fmt::format("shape {} of {} takes {} bytes, but data_offsets [{}, {}] give it {}",
                           shape_text(entry.tensor.shape), dtype->name, *product / 8, entry.begin, entry.end,
                           entry.end - entry.begin));
  }
  entry.tensor.dtype = dtype->name;
  entry.tensor.format = dtype->format;
  return entry;
}

// Sorted by place, tensors must fill [0, data_size) without gap or overlap. Tensors of no bytes come first at their
// offset.
void check_places(std::span<const Entry> entries, uint64_t data_size, const std::string& where) {
  uint64_t expected = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != expected) {
      throw Error("{}: tensor {}: its data begins at byte {}, {} the end of the data before it, {}", where,
                  printable(entry.tensor.name), entry.begin,
                  entry.begin < expected ? "overlapping" : "leaving a hole behind", expected);
    }
    expected = entry.end;
    if (expected > data_size) {
      throw Error(
          "{}: tensor {}: its data ends at byte {}, but the file has {} bytes of data; it was cut off or is damaged",
          where, printable(entry.tensor.name), expected, data_size);
    }
  }
  if (expected != data_size) {
    throw Error("{}: the tensors end at byte {} but the file has {} bytes of data; {} bytes belong to no tensor", where,
                expected, data_size, data_size - expected);
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : file_(path), where_(printable(path.native())) {
  parse(file_.bytes());
}

SafetensorsFile::SafetensorsFile(std::span<const std::byte> bytes, std::string where) : where_(std::move(where)) {
  parse(bytes);
}

void SafetensorsFile::parse(std::span<const std::byte> bytes) {
  constexpr size_t kLengthBytes = 8;
  if (bytes.size() < kLengthBytes) {
    throw Error("{}: has {} bytes, too few for a safetensors file", where_, bytes.size());
  }
  uint64_t header_size;
  std::memcpy(&header_size, bytes.data(), kLengthBytes);
  if (header_size > kMaxSafetensorsHeader) {
    throw Error("{}: not a safetensors file: header of {} bytes is above the limit of {}", where_, header_size,
                kMaxSafetensorsHeader);
  }
  if (header_size > bytes.size() - kLengthBytes) {
    throw Error("{}: header of {} bytes reaches beyond the end of the file ({} bytes); it was cut off or is damaged",
                where_, header_size, bytes.size());
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, header_size);
  if (!header.starts_with('{')) throw Error("{}: not a safetensors file: the header does not begin with {{", where_);
  const auto data = bytes.subspan(kLengthBytes + header_size);

  const auto document = JsonDocument::parse(header, where_ + ": header");
  dom::object object;
  if (document.root().get(object)) throw Error("{}: header is not a JSON object", where_);
  std::vector<Entry> entries;
  for (const auto [name, value] : object) {
    if (name != "__metadata__") {
      entries.push_back(parse_entry(name, value, where_));
      continue;
    }
    dom::object pairs;
    if (value.get(pairs)) throw Error("{}: __metadata__ is not an object", where_);
    for (const auto [key, text] : pairs) {
      std::string_view content;
      if (text.get(content)) throw Error("{}: __metadata__: \"{}\" is not a string", where_, printable(key, 80));
      metadata_.emplace_back(key, content);
    }
  }
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_places(entries, data.size(), where_);
  tensors_.reserve(entries.size());
  for (Entry& entry : entries) {
    entry.tensor.data = data.subspan(entry.begin, entry.end - entry.begin);
    tensors_.push_back(std::move(entry.tensor));
  }
  by_name_.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
}

const StoredTensor* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

uint64_t write_safetensors_header(AtomicFile& file, std::span<const TensorToStream> tensors) {
  std::string text = R"({"__metadata__":{"format":"pt"})";
  std::unordered_set<std::string_view> names;
  int64_t offset = 0;
  for (const TensorToStream& tensor : tensors) {
    FATHOM_CHECK(names.insert(tensor.name).second, "two tensors named {}", tensor.name);
    int64_t n = 1;
    for (const int64_t size : tensor.shape) n *= size;
    const int64_t end = offset + format_bytes(tensor.format, n);
    text +=
        fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", nlohmann::json(tensor.name).dump(),
                    dtype_name(tensor.format), fmt::join(tensor.shape, ","), offset, end);
    offset = end;
  }
  text += '}';
  // The data begin at a cache line of the mapped file.
  constexpr int64_t kLengthBytes = 8, kLine = 64;
  const auto size = static_cast<int64_t>(text.size());
  text.append(static_cast<size_t>(round_up(size + kLengthBytes, kLine) - kLengthBytes - size), ' ');
  const uint64_t header_size = text.size();
  file.write(&header_size, sizeof header_size);
  file.write(text);
  return sizeof header_size + header_size;
}

void write_safetensors(AtomicFile& file, std::span<const TensorToWrite> tensors) {
  std::vector<const TensorToWrite*> order;
  for (const TensorToWrite& tensor : tensors) order.push_back(&tensor);
  std::stable_sort(order.begin(), order.end(), [](const TensorToWrite* a, const TensorToWrite* b) {
    return format_bytes(a->format) > format_bytes(b->format);
  });

  std::vector<TensorToStream> entries;
  for (const TensorToWrite* tensor : order) {
    entries.push_back({tensor->name, tensor->format, {tensor->view.shape, tensor->view.shape + tensor->view.rank}});
  }
  write_safetensors_header(file, entries);

  constexpr int64_t kChunk = int64_t{1} << 18;  // elements converted at a time
  std::vector<std::byte> converted;
  for (const TensorToWrite* tensor : order) {
    const Tensor& view = tensor->view;
    if (view.size() == 0) continue;
    const bool whole = view.contiguous();
    const int64_t runs = whole ? 1 : view.rows(), run = whole ? view.size() : view.cols();
    for (int64_t r = 0; r < runs; ++r) {
      for (int64_t begin = 0; begin < run; begin += kChunk) {
        const int64_t n = std::min(kChunk, run - begin);
        const void* from = view.at(r * view.row_stride + begin);
        if (view.format != tensor->format) {
          FATHOM_CHECK(view.format == Format::f32);
          converted.resize(static_cast<size_t>(kChunk * format_bytes(tensor->format)));
          from_f32(converted.data(), static_cast<const float*>(from), tensor->format, n);
          from = converted.data();
        }
        file.write(from, static_cast<size_t>(n * format_bytes(tensor->format)));
      }
    }
  }
}

void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors) {
  AtomicFile file(path);
  write_safetensors(file, tensors);
  file.commit();
}

}  // namespace fathom
