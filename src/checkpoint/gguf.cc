#include "checkpoint/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/arithmetic.h"
#include "base/utf8.h"

namespace fathom {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is little-endian and used as it stands");

constexpr int kMaxListDepth = 4;
constexpr uint32_t kMaxRank = 4;

// Of every type that a present-day file may hold.
constexpr GgmlType kGgmlTypes[] = {
    {0, Format::f32, "F32", 1, 4},
    {1, Format::f16, "F16", 1, 2},
    {2, Format::q4_0, "Q4_0", 32, 18},
    {3, {}, "Q4_1", 32, 20},
    {6, Format::q5_0, "Q5_0", 32, 22},
    {7, Format::q5_1, "Q5_1", 32, 24},
    {8, Format::q8_0, "Q8_0", 32, 34},
    {10, {}, "Q2_K", 256, 84},
    {11, {}, "Q3_K", 256, 110},
    {12, Format::q4_k, "Q4_K", 256, 144},
    {13, Format::q5_k, "Q5_K", 256, 176},
    {14, Format::q6_k, "Q6_K", 256, 210},
    {16, {}, "IQ2_XXS", 256, 66},
    {17, {}, "IQ2_XS", 256, 74},
    {18, {}, "IQ3_XXS", 256, 98},
    {19, {}, "IQ1_S", 256, 50},
    {20, {}, "IQ4_NL", 32, 18},
    {21, {}, "IQ3_S", 256, 110},
    {22, {}, "IQ2_S", 256, 82},
    {23, {}, "IQ4_XS", 256, 136},
    {24, {}, "I8", 1, 1},
    {25, {}, "I16", 1, 2},
    {26, Format::i32, "I32", 1, 4},
    {27, Format::i64, "I64", 1, 8},
    {28, {}, "F64", 1, 8},
    {29, {}, "IQ1_M", 256, 56},
    {30, Format::bf16, "BF16", 1, 2},
    {34, {}, "TQ1_0", 256, 54},
    {35, {}, "TQ2_0", 256, 66},
    {39, {}, "MXFP4", 32, 17},
    {40, {}, "NVFP4", 64, 36},
};

// Bytes of a value; 0 for texts and lists, which say their own length.
uint64_t fixed_bytes(GgufType type) {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean:
      return 1;
    case GgufType::u16:
    case GgufType::i16:
      return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32:
      return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64:
      return 8;
    case GgufType::text:
    case GgufType::list:
      break;
  }
  return 0;
}

template <class T>
T read(std::span<const std::byte> bytes, uint64_t i = 0) {
  T x;
  std::memcpy(&x, bytes.data() + i * sizeof x, sizeof x);
  return x;
}

}  // namespace

std::string_view gguf_type_name(GgufType type) {
  constexpr std::string_view kNames[] = {"u8",   "i8",   "u16",  "i16", "u32", "i32", "f32",
                                         "bool", "text", "list", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

const GgmlType* find_ggml_type(uint32_t number) {
  const auto* found =
      std::find_if(std::begin(kGgmlTypes), std::end(kGgmlTypes), [&](const GgmlType& t) { return t.number == number; });
  return found == std::end(kGgmlTypes) ? nullptr : found;
}

const GgmlType& ggml_type(Format format) {
  const auto* found =
      std::find_if(std::begin(kGgmlTypes), std::end(kGgmlTypes), [&](const GgmlType& t) { return t.format == format; });
  FATHOM_CHECK(found != std::end(kGgmlTypes), "{}", format_traits(format).name);
  return *found;
}

// Takes what stands next. Every length is compared with what is left of the header's room before it is used.
class GgufFile::Cursor {
 public:
  Cursor(std::span<const std::byte> file, const std::string& where)
      : bytes_(file.first(std::min(file.size(), kMaxGgufHeader))), file_bytes_(file.size()), where_(where) {}

  size_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }

  // `item` says in messages what is being read.
  void begin(std::string_view what, std::string_view name) {
    what_ = what;
    name_ = name;
  }
  std::span<const std::byte> take(uint64_t n) {
    if (n > left()) {
      throw fail(fmt::format("{} reaches beyond", item()));
    }
    const auto taken = bytes_.subspan(position_, n);
    position_ += n;
    return taken;
  }
  template <class T>
  T take_number() {
    return read<T>(take(sizeof(T)));
  }
  std::string_view take_text() {
    const auto text = take(take_number<uint64_t>());
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }
  GgufType take_type() {
    const auto number = take_number<uint32_t>();
    if (number > static_cast<uint32_t>(GgufType::f64)) {
      throw Error("{}: {} {} has the unknown type {}", where_, what_, printable(name_), number);
    }
    return static_cast<GgufType>(number);
  }
  // A count of things that take at least `least_bytes` each.
  uint64_t take_count(uint64_t least_bytes) {
    const auto n = take_number<uint64_t>();
    if (n > left() / least_bytes) throw fail(fmt::format("{}: {} of them reach beyond", item(), n));
    return n;
  }
  // Passes over n values.
  void skip(GgufType type, uint64_t n, int depth) {
    if (const uint64_t bytes = fixed_bytes(type); bytes > 0) {
      take(n * bytes);  // n is a checked count
      return;
    }
    if (type == GgufType::text) {
      for (uint64_t i = 0; i < n; ++i) take_text();
      return;
    }
    if (depth == kMaxListDepth) {
      throw Error("{}: {} {} has lists nested deeper than {}", where_, what_, printable(name_), kMaxListDepth);
    }
    for (uint64_t i = 0; i < n; ++i) skip_list(depth + 1);
  }
  void skip_list(int depth) {
    const GgufType type = take_type();
    const uint64_t n = take_count(least_bytes(type));
    skip(type, n, depth);
  }
  static uint64_t least_bytes(GgufType type) {
    constexpr uint64_t kTextBytes = 8, kListBytes = 12;  // empty ones
    const uint64_t fixed = fixed_bytes(type);
    return fixed > 0 ? fixed : type == GgufType::text ? kTextBytes : kListBytes;
  }

 private:
  std::string item() const { return fmt::format("{}{}{}", what_, name_.empty() ? "" : " ", printable(name_)); }
  Error fail(const std::string& what_reaches_beyond) const {
    if (file_bytes_ > bytes_.size()) {
      return Error("{}: {} the {} bytes that a GGUF file's header may have", where_, what_reaches_beyond,
                   kMaxGgufHeader);
    }
    return Error("{}: {} the end of the file ({} bytes); it was cut off or is damaged", where_, what_reaches_beyond,
                 file_bytes_);
  }

  std::span<const std::byte> bytes_;
  size_t file_bytes_;
  const std::string& where_;
  size_t position_ = 0;
  std::string_view what_, name_;
};

GgufFile::GgufFile(const std::filesystem::path& path) : file_(path), where_(printable(path.native())) {
  parse(file_.bytes());
}

GgufFile::GgufFile(std::span<const std::byte> bytes, std::string where) : where_(std::move(where)) { parse(bytes); }

void GgufFile::parse(std::span<const std::byte> bytes) {
  constexpr uint64_t kLeastEntry = 8 + 4 + 1, kLeastTensor = 8 + 4 + 8 + 4 + 8;  // bytes, of empty names
  Cursor cursor(bytes, where_);
  cursor.begin("the header", "");
  if (bytes.size() < 4 || std::memcmp(bytes.data(), "GGUF", 4) != 0) {
    throw Error("{}: not a GGUF file: it does not begin with GGUF", where_);
  }
  cursor.take(4);
  const auto version = cursor.take_number<uint32_t>();
  if (version == 1) throw Error("{}: GGUF version 1 is not supported; versions 2 and 3 are", where_);
  if ((version & 0xFFFF) == 0 && version != 0) throw Error("{}: big-endian GGUF files are not supported", where_);
  if (version != 2 && version != 3) {
    throw Error("{}: GGUF version {} is not supported; versions 2 and 3 are", where_, version);
  }
  cursor.begin("the number of tensors", "");
  const uint64_t n_tensors = cursor.take_count(kLeastTensor);
  cursor.begin("the number of metadata keys", "");
  const uint64_t n_keys = cursor.take_count(kLeastEntry);

  for (uint64_t i = 0; i < n_keys; ++i) {
    cursor.begin("the metadata", "");
    const std::string_view key = cursor.take_text();
    if (key.empty() || key.size() > kMaxGgufKey || first_invalid_utf8(key) != kNoPosition) {
      throw Error("{}: metadata key {}: \"{}\" is no name", where_, i, printable(key, 80));
    }
    cursor.begin("the metadata value of", key);
    if (!values_.try_emplace(key, parse_value(cursor, key)).second) {
      throw Error("{}: the metadata key {} stands twice", where_, printable(key));
    }
  }

  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < n_tensors; ++i) tensors_.push_back(parse_tensor(cursor, offsets));
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!by_name_.emplace(tensors_[i].name, i).second) {
      throw Error("{}: tensor {} stands twice", where_, printable(tensors_[i].name));
    }
  }
  place_tensors(bytes, cursor.position(), offsets);
}

GgufFile::Value GgufFile::parse_value(Cursor& cursor, std::string_view key) const {
  Value value{cursor.take_type(), false, 1, {}};
  if (value.type == GgufType::list) {
    value.is_list = true;
    value.type = cursor.take_type();
    value.n = cursor.take_count(Cursor::least_bytes(value.type));
  }
  Cursor end = cursor;
  end.skip(value.type, value.n, 1);
  value.bytes = cursor.take(end.position() - cursor.position());
  if (value.type == GgufType::boolean &&
      std::any_of(value.bytes.begin(), value.bytes.end(), [](std::byte b) { return b > std::byte{1}; })) {
    throw Error("{}: the metadata value of {} is neither true nor false", where_, printable(key));
  }
  return value;
}

StoredTensor GgufFile::parse_tensor(Cursor& cursor, std::vector<uint64_t>& offsets) const {
  cursor.begin("the list of tensors", "");
  StoredTensor tensor;
  const std::string_view name = cursor.take_text();
  if (name.empty() || name.size() > kMaxGgufName || first_invalid_utf8(name) != kNoPosition) {
    throw Error("{}: tensor {}: \"{}\" is no name; it must have 1 to {} bytes of UTF-8", where_, offsets.size(),
                printable(name, 80), kMaxGgufName);
  }
  tensor.name = name;
  const auto fail = [&](const std::string& reason) {
    return Error("{}: tensor {}: {}", where_, printable(name), reason);
  };
  cursor.begin("the list of tensors at", name);
  const auto rank = cursor.take_number<uint32_t>();
  if (rank < 1 || rank > kMaxRank) throw fail(fmt::format("has {} dimensions, must have 1 to {}", rank, kMaxRank));
  for (uint32_t d = 0; d < rank; ++d) {
    const auto n = cursor.take_number<uint64_t>();
    if (n < 1 || n > INT64_MAX) throw fail(fmt::format("dimension {} has the size {}", d, n));
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(n));  // the file has the columns first
  }
  const auto number = cursor.take_number<uint32_t>();
  const GgmlType* type = find_ggml_type(number);
  if (type == nullptr) throw fail(fmt::format("has the unknown type {}", number));
  tensor.dtype = type->name;
  tensor.format = type->format;
  offsets.push_back(cursor.take_number<uint64_t>());

  if (tensor.shape.back() % type->block != 0) {
    throw fail(fmt::format("rows of {} numbers are no whole blocks of {}, which hold {}", tensor.shape.back(),
                           type->name, type->block));
  }
  std::optional<uint64_t> n_bytes = static_cast<uint64_t>(tensor.shape.back() / type->block);
  n_bytes = checked_multiply(*n_bytes, static_cast<uint64_t>(type->block_bytes));
  for (size_t d = 0; n_bytes && d + 1 < tensor.shape.size(); ++d) {
    n_bytes = checked_multiply(*n_bytes, static_cast<uint64_t>(tensor.shape[d]));
  }
  if (!n_bytes || *n_bytes > INT64_MAX) {
    throw fail(fmt::format("shape {} of {} overflows", shape_text(tensor.shape), type->name));
  }
  // Where it lies is not known before the list ends; until then the span has its size alone.
  tensor.data = {static_cast<const std::byte*>(nullptr), static_cast<size_t>(*n_bytes)};
  return tensor;
}

// Puts every tensor at its place behind the header, which must be aligned, inside the file and nobody else's.
void GgufFile::place_tensors(std::span<const std::byte> bytes, size_t header_end, std::span<const uint64_t> offsets) {
  const int64_t alignment = integer_or("general.alignment", kGgufAlignment);
  if (alignment < 1 || alignment > INT32_MAX || !std::has_single_bit(static_cast<uint64_t>(alignment))) {
    throw Error("{}: general.alignment is {}, must be a power of two", where_, alignment);
  }
  const auto begin = static_cast<uint64_t>(round_up(static_cast<int64_t>(header_end), alignment));
  std::vector<size_t> order(tensors_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return offsets[a] < offsets[b]; });
  uint64_t free_from = 0;  // behind the header
  std::string_view before;
  for (const size_t i : order) {
    StoredTensor& tensor = tensors_[i];
    const uint64_t offset = offsets[i], size = tensor.data.size();
    if (offset % static_cast<uint64_t>(alignment) != 0) {
      throw Error("{}: tensor {}: its data begins at byte {}, which is no multiple of the alignment of {}", where_,
                  printable(tensor.name), offset, alignment);
    }
    const auto end = checked_add(offset, size);
    const auto end_in_file = end ? checked_add(*end, begin) : std::nullopt;
    if (!end_in_file || *end_in_file > bytes.size()) {
      throw Error(
          "{}: tensor {}: its {} bytes from byte {} of the data on reach beyond the end of the file ({} bytes); "
          "it was cut off or is damaged",
          where_, printable(tensor.name), size, offset, bytes.size());
    }
    if (offset < free_from) {
      throw Error("{}: tensor {}: its data begins at byte {}, inside the data of {}", where_, printable(tensor.name),
                  offset, printable(before));
    }
    tensor.data = bytes.subspan(begin + offset, size);
    free_from = *end;
    before = tensor.name;
  }
}

const StoredTensor* GgufFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

const GgufFile::Value& GgufFile::at(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) throw Error("{}: the metadata key {} is missing", where_, key);
  return found->second;
}

const GgufFile::Value& GgufFile::at(std::string_view key, bool is_list, std::string_view expected) const {
  const Value& value = at(key);
  if (value.is_list != is_list) throw wrong_type(key, expected);
  return value;
}

Error GgufFile::wrong_type(std::string_view key, std::string_view expected) const {
  const Value& value = at(key);
  return Error("{}: {} is {}{}, not {}", where_, key, value.is_list ? "a list of " : "", gguf_type_name(value.type),
               expected);
}

int64_t GgufFile::integer_at(const Value& value, uint64_t i, std::string_view key) const {
  switch (value.type) {
    case GgufType::u8:
      return read<uint8_t>(value.bytes, i);
    case GgufType::i8:
      return read<int8_t>(value.bytes, i);
    case GgufType::u16:
      return read<uint16_t>(value.bytes, i);
    case GgufType::i16:
      return read<int16_t>(value.bytes, i);
    case GgufType::u32:
      return read<uint32_t>(value.bytes, i);
    case GgufType::i32:
      return read<int32_t>(value.bytes, i);
    case GgufType::u64:
    case GgufType::i64:
      break;
    default:
      throw wrong_type(key, value.is_list ? "a list of whole numbers" : "a whole number");
  }
  // As in a config.json, nothing counted comes near this.
  constexpr int64_t kLimit = int64_t{1} << 40;
  const auto x = read<int64_t>(value.bytes, i);
  if (x > kLimit || x < (value.type == GgufType::u64 ? 0 : -kLimit)) {
    throw Error("{}: {} is out of range", where_, key);
  }
  return x;
}

int64_t GgufFile::integer(std::string_view key) const { return integer_at(at(key, false, "a whole number"), 0, key); }

double GgufFile::number(std::string_view key) const {
  const Value& value = at(key, false, "a number");
  if (value.type == GgufType::f64) return read<double>(value.bytes);
  // Writers round decimals to f32: this gives back 1e-6, not 9.9999999748e-07.
  if (value.type == GgufType::f32) return std::stod(fmt::format("{}", read<float>(value.bytes)));
  return static_cast<double>(integer_at(value, 0, key));
}

bool GgufFile::boolean(std::string_view key) const {
  const Value& value = at(key, false, "true or false");
  if (value.type != GgufType::boolean) throw wrong_type(key, "true or false");
  return read<uint8_t>(value.bytes) != 0;
}

std::string_view GgufFile::text(std::string_view key) const {
  const Value& value = at(key, false, "a text");
  if (value.type != GgufType::text) throw wrong_type(key, "a text");
  const std::string_view text = Cursor(value.bytes, where_).take_text();
  if (const size_t i = first_invalid_utf8(text); i != kNoPosition) {
    throw Error("{}: {} is not UTF-8 at byte {}", where_, key, i);
  }
  return text;
}

std::vector<int64_t> GgufFile::integers(std::string_view key) const {
  const Value& value = at(key, true, "a list of whole numbers");
  std::vector<int64_t> list;
  if (value.n > 0) (void)integer_at(value, 0, key);  // its type, before memory is asked for
  list.reserve(value.n);
  for (uint64_t i = 0; i < value.n; ++i) list.push_back(integer_at(value, i, key));
  return list;
}

std::vector<std::string_view> GgufFile::texts(std::string_view key) const {
  const Value& value = at(key, true, "a list of texts");
  if (value.type != GgufType::text) throw wrong_type(key, "a list of texts");
  Cursor cursor(value.bytes, where_);
  std::vector<std::string_view> list;
  list.reserve(value.n);
  for (uint64_t i = 0; i < value.n; ++i) {
    list.push_back(cursor.take_text());
    if (const size_t at = first_invalid_utf8(list.back()); at != kNoPosition) {
      throw Error("{}: {}[{}] is not UTF-8 at byte {}", where_, key, i, at);
    }
  }
  return list;
}

}  // namespace fathom
