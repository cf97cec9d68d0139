#include "text/unpacking.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <new>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"

namespace fathom {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 18;
constexpr int kMaxZstdWindowLog = 31;  // what `zstd --long=31` writes; the memory is taken as text fills it

}  // namespace

Compression compression_of(const std::filesystem::path& path) {
  const std::filesystem::path end = path.extension();
  return end == ".gz" ? Compression::gzip : end == ".zst" ? Compression::zstd : Compression::none;
}

struct UnpackedFile::State {
  explicit State(const std::filesystem::path& path)
      : file(path), where(printable(path.native())), compression(compression_of(path)), buffer(kBufferBytes) {
    constexpr int kGzipOnly = 16;
    if (compression == Compression::gzip && inflateInit2(&gzip, MAX_WBITS + kGzipOnly) != Z_OK) throw std::bad_alloc();
    if (compression != Compression::zstd) return;
    zstd = ZSTD_createDCtx();
    if (zstd == nullptr) throw std::bad_alloc();
    ZSTD_DCtx_setParameter(zstd, ZSTD_d_windowLogMax, kMaxZstdWindowLog);
  }
  ~State() {
    if (compression == Compression::gzip) inflateEnd(&gzip);
    ZSTD_freeDCtx(zstd);  // null is fine
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void refill() {
    begin = 0;
    end = file.read(buffer.data(), buffer.size());
    file_read += end;
    at_end = end == 0;
  }
  uint64_t consumed() const { return file_read - (end - begin); }
  [[noreturn]] void refuse(const char* why) const {
    throw Error("{}: damaged at byte {}: {}; fetch or compress it again", where, consumed(), why);
  }

  // Each goes on as far as the stored bytes at hand and the room for unpacked ones allow; how many of these came.
  size_t unpack_gzip(char* out, size_t bytes) {
    if (whole && inflateReset(&gzip) != Z_OK) refuse("no memory");
    whole = false;
    constexpr size_t kMost = size_t{1} << 30;  // zlib counts in 32 bits
    gzip.next_in = buffer.data() + begin;
    gzip.avail_in = static_cast<uInt>(end - begin);
    gzip.next_out = reinterpret_cast<Bytef*>(out);
    gzip.avail_out = static_cast<uInt>(std::min(bytes, kMost));
    const size_t room = gzip.avail_out;
    const int result = inflate(&gzip, Z_NO_FLUSH);
    begin = end - gzip.avail_in;
    if (result == Z_STREAM_END) {
      whole = true;
    } else if (result != Z_OK && result != Z_BUF_ERROR) {
      refuse(gzip.msg != nullptr ? gzip.msg : "no gzip data");
    }
    return room - gzip.avail_out;
  }
  size_t unpack_zstd(char* out, size_t bytes) {
    ZSTD_inBuffer in{buffer.data() + begin, end - begin, 0};
    ZSTD_outBuffer unpacked{out, bytes, 0};
    const size_t result = ZSTD_decompressStream(zstd, &unpacked, &in);
    begin += in.pos;
    if (ZSTD_isError(result) != 0) refuse(ZSTD_getErrorName(result));
    whole = result == 0;
    return unpacked.pos;
  }

  InputFile file;
  std::string where;
  Compression compression;
  std::vector<unsigned char> buffer;  // [begin, end) is not unpacked yet
  size_t begin = 0, end = 0;
  uint64_t file_read = 0;
  bool at_end = false;
  bool whole = false;  // a member or frame ends here
  z_stream gzip{};
  ZSTD_DCtx* zstd = nullptr;
};

UnpackedFile::UnpackedFile(const std::filesystem::path& path) : state_(std::make_unique<State>(path)) {}
UnpackedFile::UnpackedFile(UnpackedFile&&) noexcept = default;
UnpackedFile& UnpackedFile::operator=(UnpackedFile&&) noexcept = default;
UnpackedFile::~UnpackedFile() = default;

uint64_t UnpackedFile::stored_read() const { return state_->consumed(); }

size_t UnpackedFile::read(char* out, size_t bytes) {
  State& s = *state_;
  size_t done = 0;
  while (done < bytes) {
    if (s.compression == Compression::none) {
      const size_t n = s.file.read(out + done, bytes - done);
      if (n == 0) break;
      s.file_read += n;
      done += n;
      continue;
    }
    if (s.begin == s.end && !s.at_end) s.refill();
    if (s.at_end && s.whole) break;
    const size_t left = s.end - s.begin;
    const size_t n = s.compression == Compression::gzip ? s.unpack_gzip(out + done, bytes - done)
                                                        : s.unpack_zstd(out + done, bytes - done);
    done += n;
    if (n > 0 || s.end - s.begin < left) continue;  // what a decoder holds back comes without further bytes
    if (!s.at_end) s.refuse("no end of its data");
    throw Error("{}: ends after {} bytes in the middle of its data; it was cut off, fetch it again", s.where,
                s.file_read);
  }
  return done;
}

}  // namespace fathom
