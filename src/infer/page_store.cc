#include "infer/page_store.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "base/checksum.h"
#include "base/error.h"
#include "base/terminal.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr char kMagic[8] = {'F', 'T', 'H', 'M', 'P', 'A', 'G', '1'};
constexpr int64_t kMostWaitingBytes = int64_t{256} << 20;

struct Header {
  char magic[8];
  PageStore::Name name;
  uint64_t bytes, xxh3;  // of the page behind it
};
static_assert(sizeof(Header) == 56);

Header header_of(const PageStore::Name& name, std::span<const char> page) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.name = name;
  header.bytes = page.size();
  Xxh3 sum;
  sum.update(page.data(), page.size());
  header.xxh3 = sum.value();
  return header;
}

std::optional<PageStore::Name> name_of(std::string_view hex) {
  PageStore::Name name;
  if (hex.size() != 2 * name.size()) return std::nullopt;
  for (size_t i = 0; i < name.size(); ++i) {
    const char* const at = hex.data() + 2 * i;
    if (std::from_chars(at, at + 2, name[i], 16).ptr != at + 2) return std::nullopt;
  }
  return hex_of(name) == hex ? std::optional(name) : std::nullopt;
}

// Whether a file of so many bytes begins as a page that fills it.
bool is_page_of_its_size(const fs::path& path, const PageStore::Name& name, int64_t bytes) {
  Header header{};
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(&header), sizeof header)) return false;
  return std::memcmp(header.magic, kMagic, sizeof kMagic) == 0 && header.name == name &&
         header.bytes + sizeof header == static_cast<uint64_t>(bytes);
}

fs::path private_directory(const fs::path& directory) {
  const std::vector<fs::path> made = make_directory(directory);
  struct stat s {};
  if (!made.empty() && chmod(directory.c_str(), 0700) != 0) {
    throw Error("{}: {}", printable(directory.native()), std::strerror(errno));
  }
  if (stat(directory.c_str(), &s) != 0 || (s.st_mode & 0077) != 0) {
    throw Error("{} can be read by other users, and what requests said will stand there: chmod 700 it",
                printable(directory.native()));
  }
  return directory;
}

}  // namespace

PageStoreState& PageStoreState::operator+=(const PageStoreState& other) {
  pages += other.pages;
  bytes += other.bytes;
  read += other.read;
  written += other.written;
  failed += other.failed;
  dropped += other.dropped;
  return *this;
}

PageStore::PageStore(const fs::path& directory, std::string_view identity, int64_t page_bytes, int64_t max_bytes)
    : directory_(private_directory(directory)),
      lock_(directory_),
      identity_(fmt::format("{} {}", page_bytes, identity)),
      page_bytes_(page_bytes),
      max_bytes_(max_bytes) {
  find_files();
  thread_ = std::thread([this] { run(); });
}

PageStore::~PageStore() {
  {
    const std::lock_guard lock(mutex_);
    stops_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

PageStore::Name PageStore::name(const Name* before, std::string_view salt, std::span<const int32_t> ids) const {
  // Each part has its length in front; a first page's salt and a later one's predecessor stand for all before.
  std::string all;
  const auto add = [&](char kind, const void* data, size_t bytes) {
    all += fmt::format("{}{}:", kind, bytes);
    all.append(static_cast<const char*>(data), bytes);
  };
  if (before != nullptr) {
    add('p', before->data(), before->size());
  } else {
    add('i', identity_.data(), identity_.size());
    add('s', salt.data(), salt.size());
  }
  add('t', ids.data(), ids.size_bytes());
  Name name;
  unsigned size = 0;
  FATHOM_CHECK(EVP_Digest(all.data(), all.size(), name.data(), &size, EVP_sha256(), nullptr) == 1 &&
               size == name.size());
  return name;
}

// In folders of the first byte: some file systems are slow at many files in one.
fs::path PageStore::path_of(const Name& name) const {
  const std::string hex = hex_of(name);
  return directory_ / hex.substr(0, 2) / (hex + ".page");
}

int64_t PageStore::file_bytes() const { return page_bytes_ + static_cast<int64_t>(sizeof(Header)); }

// What earlier programs left. Of what bears a page's name, files that were not written to their end are removed, and
// whole pages of another size stay as they are: they are of another model, or of a cache in another format.
void PageStore::find_files() {
  std::vector<std::pair<fs::file_time_type, Name>> found;
  int64_t n_others = 0;
  for (const fs::path& folder : list_directory(directory_)) {
    if (folder.filename().native().size() != 2 || !path_is_directory(folder)) continue;
    for (const fs::path& path : list_directory(folder)) {
      const bool partial = path.extension() == ".partial";
      const fs::path page = partial ? fs::path(path).replace_extension() : path;
      const auto name = page.extension() == ".page" ? name_of(page.stem().native()) : std::nullopt;
      if (!name || path_of(*name) != page) continue;  // somebody else's
      std::error_code error;
      const auto bytes = static_cast<int64_t>(fs::file_size(path, error));
      const auto time = error ? fs::file_time_type() : fs::last_write_time(path, error);
      if (error) continue;
      if (!partial && bytes == file_bytes()) {
        found.emplace_back(time, *name);
      } else if (partial || !is_page_of_its_size(path, *name, bytes)) {
        fs::remove(path, error);
      } else {
        ++n_others;
      }
    }
  }
  if (n_others > 0) {
    log("{}: {} pages are of another model or --kv-type; they stay, and are not counted",
        printable(directory_.native()), n_others);
  }
  std::ranges::sort(found);
  for (const auto& [time, name] : found) use(name);
  remove_oldest();
}

void PageStore::use(const Name& name) {
  int64_t& last_used = last_used_[name];
  by_use_.erase(last_used);
  last_used = ++clock_;
  by_use_[last_used] = name;
}

void PageStore::forget(Name name) {
  const auto found = last_used_.find(name);
  if (found == last_used_.end()) return;
  by_use_.erase(found->second);
  last_used_.erase(found);
  std::error_code ignored;
  fs::remove(path_of(name), ignored);
}

void PageStore::remove_oldest() {
  while (std::ssize(last_used_) * file_bytes() > max_bytes_) forget(by_use_.begin()->second);
}

// Once until something succeeds: a full disk would fill the log too.
void PageStore::fail(const std::string& why) {
  ++state_.failed;
  if (!std::exchange(told_, true)) log("prefix cache: {}", why);
}

void PageStore::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [&] { return stops_ || !waiting_.empty(); });
    if (waiting_.empty()) return;
    const Waiting next = std::move(waiting_.front());
    waiting_.pop_front();
    writing_ = next.name;
    lock.unlock();
    std::string why;
    try {
      const fs::path path = path_of(next.name);
      make_directory(path.parent_path());
      const Header header = header_of(next.name, next.page);
      AtomicFile file(path);
      file.write(&header, sizeof header);
      file.write(next.page.data(), next.page.size());
      file.commit();
    } catch (const Error& error) {
      why = error.what();
    }
    lock.lock();
    writing_.reset();
    if (why.empty()) {
      use(next.name);
      ++state_.written;
      told_ = false;
      remove_oldest();
    } else {
      fail(why);
    }
    if (waiting_.empty()) idle_.notify_all();
  }
}

bool PageStore::has(const Name& name) const {
  const std::lock_guard lock(mutex_);
  return last_used_.contains(name);
}

std::vector<PageStore::Name> PageStore::names() const {
  const std::lock_guard lock(mutex_);
  std::vector<Name> names;
  for (const auto& [name, used] : last_used_) names.push_back(name);
  return names;
}

bool PageStore::read(const Name& name, std::span<char> page) {
  FATHOM_CHECK(std::ssize(page) == page_bytes_);
  {
    const std::lock_guard lock(mutex_);
    if (!last_used_.contains(name)) return false;
    use(name);
  }
  const fs::path path = path_of(name);
  std::string why;
  try {
    InputFile file(path);
    Header header;
    const auto fill = [&](char* out, size_t bytes) {
      while (bytes > 0) {
        const size_t n = file.read(out, bytes);
        if (n == 0) throw Error("{} ends early", printable(path.native()));
        out += n;
        bytes -= n;
      }
    };
    fill(reinterpret_cast<char*>(&header), sizeof header);
    fill(page.data(), page.size());
    const Header want = header_of(name, page);
    if (std::memcmp(&header, &want, sizeof header) != 0) throw Error("{} is damaged", printable(path.native()));
  } catch (const Error& error) {
    why = error.what();
  }
  const std::lock_guard lock(mutex_);
  if (why.empty()) {
    utimensat(AT_FDCWD, path.c_str(), nullptr, 0);  // the order of use after a restart: no matter if it fails
    ++state_.read;
  } else if (last_used_.contains(name)) {  // or the writing thread has removed it in the meantime
    forget(name);
    fail(why + "; it is computed again");
  }
  return why.empty();
}

void PageStore::write(const Name& name, std::span<const char> page) {
  FATHOM_CHECK(std::ssize(page) == page_bytes_);
  const std::lock_guard lock(mutex_);
  if (last_used_.contains(name) || writing_ == name) return;
  const bool waits = std::ranges::any_of(waiting_, [&](const Waiting& w) { return w.name == name; });
  if (waits) return;
  if (!waiting_.empty() && std::ssize(waiting_) * page_bytes_ >= kMostWaitingBytes) {
    ++state_.dropped;
    return;
  }
  waiting_.push_back({name, {page.begin(), page.end()}});
  wake_.notify_one();
}

void PageStore::flush() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [&] { return waiting_.empty() && !writing_; });
}

PageStoreState PageStore::state() const {
  const std::lock_guard lock(mutex_);
  PageStoreState state = state_;
  state.pages = std::ssize(last_used_);
  state.bytes = state.pages * file_bytes();
  return state;
}

std::string identity_of_model(const fs::path& model) {
  std::vector<fs::path> files = {model};
  if (path_is_directory(model)) files = list_directory(model);
  std::string identity;
  for (const fs::path& path : files) {
    struct stat s {};
    if (stat(path.c_str(), &s) != 0) throw Error("{}: {}", printable(path.native()), std::strerror(errno));
    if (!S_ISREG(s.st_mode)) continue;
    identity += fmt::format("{}:{}:{}:{}.{}\n", path.filename().native().size(), path.filename().native(), s.st_size,
                            s.st_mtim.tv_sec, s.st_mtim.tv_nsec);
  }
  return identity;
}

}  // namespace fathom
