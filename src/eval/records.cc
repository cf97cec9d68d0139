#include "eval/records.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/terminal.h"
#include "eval/task_files.h"

namespace fathom::eval {
namespace {

using nlohmann::ordered_json;

constexpr size_t kMaxBytes = size_t{8} << 30;
constexpr double kSyncS = 5;

Error failed(const std::filesystem::path& path, const char* what) {
  return Error("{}: cannot {}: {}", printable(path.native()), what, std::strerror(errno));
}

Record read_record(std::string_view line, const std::string& where) {
  const JsonDocument document = JsonDocument::parse(line, where);
  const simdjson::dom::element root = document.root();
  if (!root.is_object()) throw Error("{}: is no object", where);
  Record record{.item = integer_field(root, "item", where), .sample = integer_field(root, "sample", where)};
  record.id = text_field(root, "id", where);
  record.subject = find_text(root, "subject").value_or("");
  record.extracted = find_text(root, "extracted").value_or("");
  record.error = find_text(root, "error").value_or("");
  record.finish = find_text(root, "finish").value_or("");
  const auto count = [&](const char* key) {
    int64_t n = 0;
    return root[key].get_int64().get(n) == simdjson::SUCCESS && n > 0 ? n : 0;
  };
  record.prompt_tokens = count("prompt_tokens");
  record.tokens = count("tokens");
  if (root["seconds"].get_double().get(record.seconds)) record.seconds = 0;
  if (root["truncated"].get_bool().get(record.truncated)) record.truncated = false;
  simdjson::dom::object scores;
  if (root["scores"].get(scores)) throw Error("{}: there are no scores", where);
  for (const simdjson::dom::key_value_pair score : scores) {
    double value = 0;
    if (score.value.get_double().get(value)) throw Error("{}: a score is no number", where);
    record.scores.emplace_back(std::string(score.key), value);
  }
  if (record.item < 0 || record.sample < 0) throw Error("{}: item and sample must be 0 or more", where);
  return record;
}

}  // namespace

ordered_json record_json(const Record& record, const ordered_json& more) {
  ordered_json json{{"item", record.item}, {"sample", record.sample}, {"id", record.id}};
  if (!record.subject.empty()) json["subject"] = record.subject;
  ordered_json scores = ordered_json::object();
  for (const auto& [name, value] : record.scores) scores[name] = value;
  json["scores"] = std::move(scores);
  if (!record.extracted.empty()) json["extracted"] = record.extracted;
  if (!record.error.empty()) json["error"] = record.error;
  if (!record.finish.empty()) json["finish"] = record.finish;
  if (record.truncated) json["truncated"] = true;
  json["prompt_tokens"] = record.prompt_tokens;
  json["tokens"] = record.tokens;
  json["seconds"] = record.seconds;
  for (const auto& [name, value] : more.items()) json[name] = value;
  return json;
}

std::vector<Record> read_records(const std::filesystem::path& path) {
  std::vector<Record> records;
  if (!path_exists(path)) return records;
  const std::string text = read_file(path, kMaxBytes);
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // torn
    const std::string where = fmt::format("{}: line {}", printable(path.native()), ++number);
    try {
      records.push_back(read_record(std::string_view(text).substr(begin, end - begin), where));
    } catch (const Error& error) {
      throw Error("{}; the file is damaged: give another --out, or remove the line", error.what());
    }
    begin = end + 1;
  }
  return records;
}

RecordFile::RecordFile(const std::filesystem::path& path) : path_(path) {
  if (path.empty()) return;
  fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) throw failed(path, "open it for writing");
  // Behind the last line end there may be what a kill has left.
  off_t size = lseek(fd_, 0, SEEK_END), kept = size;
  char block[1 << 16];
  while (kept > 0) {
    const off_t first = std::max<off_t>(kept - static_cast<off_t>(sizeof block), 0);
    const ssize_t n = pread(fd_, block, static_cast<size_t>(kept - first), first);
    if (n != kept - first) throw failed(path, "read it");
    const std::string_view bytes(block, static_cast<size_t>(n));
    if (const size_t at = bytes.rfind('\n'); at != std::string_view::npos) {
      kept = first + static_cast<off_t>(at) + 1;
      break;
    }
    kept = first;
  }
  if (kept != size && ftruncate(fd_, kept) != 0) throw failed(path, "cut off a torn line");
  if (lseek(fd_, kept, SEEK_SET) != kept) throw failed(path, "write behind what is there");
  synced_s_ = monotonic_s();
}

RecordFile::~RecordFile() {
  if (fd_ >= 0) close(fd_);
}

void RecordFile::append(const ordered_json& line) {
  if (fd_ < 0) return;
  const std::string text = line.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
  const std::lock_guard lock(mutex_);
  for (size_t done = 0; done < text.size();) {
    const ssize_t n = write(fd_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw failed(path_, "write to it");
    done += static_cast<size_t>(n);
  }
  if (monotonic_s() - synced_s_ < kSyncS) return;
  fdatasync(fd_);
  synced_s_ = monotonic_s();
}

void RecordFile::sync() {
  if (fd_ >= 0 && fsync(fd_) != 0) throw failed(path_, "write to it");
}

}  // namespace fathom::eval
