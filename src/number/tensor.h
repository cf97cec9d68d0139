// Tensor: a view of numbers somewhere. It owns nothing, is cheap to copy, and is passed by value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "base/error.h"

namespace fathom {

enum class Format : uint8_t {
  f32,
  bf16,
  f16,
  f8_e4m3,
  i32,
  i64,
  u8,
  // Blocks of numbers with scales of their own, as GGUF defines them (number/blocks.h).
  q8_0,
  q4_0,
  q5_0,
  q5_1,  // to be read alone: weights become f16
  q4_k,
  q5_k,
  q6_k,
};

struct FormatTraits {
  const char* name;
  int64_t block;        // numbers that are stored together; a row holds whole blocks
  int64_t block_bytes;  // bytes of that many
};

constexpr FormatTraits format_traits(Format format) {
  switch (format) {
    case Format::f32:
      return {"f32", 1, 4};
    case Format::bf16:
      return {"bf16", 1, 2};
    case Format::f16:
      return {"f16", 1, 2};
    case Format::f8_e4m3:
      return {"fp8", 1, 1};
    case Format::i32:
      return {"i32", 1, 4};
    case Format::i64:
      return {"i64", 1, 8};
    case Format::u8:
      return {"u8", 1, 1};
    case Format::q8_0:
      return {"q8_0", 32, 34};
    case Format::q4_0:
      return {"q4_0", 32, 18};
    case Format::q5_0:
      return {"q5_0", 32, 22};
    case Format::q5_1:
      return {"q5_1", 32, 24};
    case Format::q4_k:
      return {"q4_k", 256, 144};
    case Format::q5_k:
      return {"q5_k", 256, 176};
    case Format::q6_k:
      return {"q6_k", 256, 210};
  }
  return {"", 1, 0};
}

constexpr bool is_block_format(Format format) { return format_traits(format).block > 1; }

// Bytes of n numbers, n being whole blocks.
constexpr int64_t format_bytes(Format format, int64_t n = 1) {
  const FormatTraits traits = format_traits(format);
  return n / traits.block * traits.block_bytes;
}

// Up to 4 dimensions, row-major. Everything before the last dimension is rows: row i begins row_stride elements behind
// row i-1, so a view may be a range of columns of a wider tensor. A default-made tensor is absent (false).
struct Tensor {
  void* data = nullptr;
  Format format = Format::f32;
  int rank = 0;
  bool panels =
      false;  // rows stand in panels of 8 (number/panels.h), each matrix of the last two dimensions in its own
  int64_t shape[4] = {0, 0, 0, 0};
  int64_t row_stride = 0;  // elements; of panels, bytes from one to the next

  Tensor() = default;
  Tensor(void* p, Format f, std::initializer_list<int64_t> dims)
      : Tensor(p, f, dims.begin(), static_cast<int>(dims.size())) {}
  Tensor(void* p, Format f, const int64_t* dims, int n_dims) : data(p), format(f), rank(n_dims) {
    FATHOM_CHECK(n_dims >= 1 && n_dims <= 4);
    for (int i = 0; i < n_dims; ++i) shape[i] = dims[i];
    row_stride = shape[rank - 1];
  }

  explicit operator bool() const { return data != nullptr; }

  int64_t cols() const { return shape[rank - 1]; }
  int64_t rows() const {
    int64_t n = 1;
    for (int i = 0; i + 1 < rank; ++i) n *= shape[i];
    return n;
  }
  int64_t size() const { return rows() * cols(); }
  int64_t size_bytes() const {
    return panels ? n_matrices() * panels_of_matrix() * row_stride : format_bytes(format, size());
  }
  bool contiguous() const { return rows() <= 1 || row_stride == cols(); }

  // The elements as T; the format must say so.
  template <class T>
  T* as() const {
    FATHOM_CHECK(sizeof(T) == static_cast<size_t>(format_traits(format).block_bytes));
    return static_cast<T*>(data);
  }
  float* f32() const {
    FATHOM_CHECK(format == Format::f32 && !panels);
    return static_cast<float*>(data);
  }
  float* f32_row(int64_t row) const { return f32() + row * row_stride; }
  float& f32(int64_t row, int64_t col) const { return f32_row(row)[col]; }
  int32_t* i32() const {
    FATHOM_CHECK(format == Format::i32);
    return static_cast<int32_t*>(data);
  }

  // Where an element, the first of a block, is.
  void* at(int64_t element) const { return moved(format_bytes(format, element)); }

  // Rows [begin, begin + n) of a matrix (rank 2), or indices of the first dimension of a higher rank.
  Tensor slice(int64_t begin, int64_t n) const {
    FATHOM_CHECK(begin >= 0 && n >= 0 && begin + n <= shape[0]);
    Tensor t = *this;
    t.shape[0] = n;
    t.data = first_dimension(begin);
    return t;
  }
  // The i-th of the first dimension, one rank less (rank >= 2; of panels rank 3).
  Tensor operator[](int64_t i) const {
    FATHOM_CHECK(rank >= (panels ? 3 : 2) && i >= 0 && i < shape[0]);
    Tensor t = *this;
    t.rank = rank - 1;
    for (int d = 0; d < t.rank; ++d) t.shape[d] = shape[d + 1];
    t.shape[t.rank] = 0;
    t.data = first_dimension(i);
    return t;
  }
  // Columns [begin, begin + n), same rows.
  Tensor columns(int64_t begin, int64_t n) const {
    FATHOM_CHECK(!panels && begin >= 0 && n >= 0 && begin + n <= cols());
    Tensor t = *this;
    t.shape[rank - 1] = n;
    t.data = at(begin);
    return t;
  }
  // Same elements in another shape; only for contiguous tensors.
  Tensor reshape(std::initializer_list<int64_t> dims) const {
    const Tensor t(data, format, dims);
    FATHOM_CHECK(!panels && contiguous() && t.size() == size());
    return t;
  }

 private:
  int64_t n_matrices() const { return rank == 3 ? shape[0] : 1; }
  int64_t panels_of_matrix() const { return (shape[rank - 2] + 7) / 8; }
  void* first_dimension(int64_t i) const {
    if (!panels) return at(i * stride_of_first());
    FATHOM_CHECK(rank == 3 || (rank == 2 && i % 8 == 0));
    return moved((rank == 3 ? i * panels_of_matrix() : i / 8) * row_stride);
  }
  // What is absent stays absent.
  void* moved(int64_t bytes) const { return data ? static_cast<char*>(data) + bytes : nullptr; }
  int64_t stride_of_first() const {
    int64_t n = rank == 1 ? 1 : row_stride;
    for (int i = 1; i + 1 < rank; ++i) n *= shape[i];
    return n;
  }
};

}  // namespace fathom
