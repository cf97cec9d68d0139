// Pages in files: found again by whoever names them, and nothing but what was written.
#include "infer/page_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <thread>

#include "base/error.h"
#include "base/rng.h"
#include "temporary_directory.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using test::TemporaryDirectory;

constexpr int64_t kBytes = 1000, kFileBytes = kBytes + 56, kRoom = 1 << 20;

std::vector<char> page_of(int n) {
  Rng rng(static_cast<uint64_t>(n));
  std::vector<char> page(kBytes);
  std::ranges::generate(page, [&] { return static_cast<char>(rng.below(256)); });
  return page;
}

PageStore::Name name_of(const PageStore& store, int n) { return store.name(nullptr, "salt", std::array{n, 2}); }

bool reads(PageStore& store, int n) {
  std::vector<char> page(kBytes, 'x');
  return store.read(name_of(store, n), page) && page == page_of(n);
}

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file() && entry.path().extension() == ".page") files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

void fill(const fs::path& folder, int n) {
  PageStore store(folder, "model", kBytes, kRoom);
  for (int i = 0; i < n; ++i) store.write(name_of(store, i), page_of(i));
}

TEST(PageStore, GivesBackWhatWasWrittenAfterARestart) {
  const TemporaryDirectory folder;
  {
    PageStore store(folder.path(), "model", kBytes, kRoom);
    EXPECT_FALSE(store.has(name_of(store, 1)));
    for (const int n : {1, 2, 1}) store.write(name_of(store, n), page_of(n));
    store.flush();
    EXPECT_TRUE(store.has(name_of(store, 1)) && reads(store, 1) && reads(store, 2));
    EXPECT_EQ(store.state().written, 2);
    store.write(name_of(store, 3), page_of(3));
  }
  PageStore store(folder.path(), "model", kBytes, kRoom);
  EXPECT_TRUE(reads(store, 1) && reads(store, 2) && reads(store, 3)) << "what waited was written";
  EXPECT_EQ(store.state().pages, 3);
  EXPECT_EQ(store.state().bytes, 3 * kFileBytes);
}

TEST(PageStore, NamesDependOnAllThatIsBefore) {
  const TemporaryDirectory folder, other;
  const PageStore store(folder.path(), "model", kBytes, kRoom), twin(other.path(), "other model", kBytes, kRoom);
  const std::array a = {1, 2}, b = {1, 3};
  const PageStore::Name first = store.name(nullptr, "s", a);
  const std::vector<PageStore::Name> names = {first,
                                              store.name(nullptr, "t", a),
                                              store.name(nullptr, "s", b),
                                              store.name(nullptr, "s", std::array{1}),
                                              twin.name(nullptr, "s", a),
                                              store.name(&first, "", a),
                                              store.name(&first, "", b)};
  for (size_t i = 0; i < names.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(names[i], names[j]) << i << " " << j;
  }
  EXPECT_EQ(first, store.name(nullptr, "s", a));
}

// Every byte, and every length: what is not what was written is not given out, and does not stay.
TEST(PageStore, DamagedFilesCountAsAbsent) {
  const TemporaryDirectory folder;
  fill(folder.path(), 1);
  const std::vector<fs::path> files = files_in(folder.path());
  ASSERT_EQ(files.size(), 1u);
  std::string whole(kFileBytes, ' ');
  std::ifstream(files[0]).read(whole.data(), kFileBytes);
  const auto damage = [&](const std::string& content) {
    std::ofstream(files[0]) << content;
    PageStore store(folder.path(), "model", kBytes, kRoom);
    const bool found = reads(store, 0);
    EXPECT_EQ(fs::exists(files[0]), found);
    return found;
  };
  EXPECT_TRUE(damage(whole));
  for (size_t i = 0; i < whole.size(); ++i) {
    std::string content = whole;
    content[i] = static_cast<char>(content[i] ^ 1 << i % 8);
    EXPECT_FALSE(damage(content)) << "byte " << i;
    EXPECT_FALSE(damage(whole.substr(0, i))) << i << " bytes";
  }
  EXPECT_FALSE(damage(whole + "x"));
  EXPECT_TRUE(damage(whole));
  // While the program runs.
  PageStore store(folder.path(), "model", kBytes, kRoom);
  fs::remove(files[0]);
  EXPECT_FALSE(reads(store, 0));
  EXPECT_FALSE(store.has(name_of(store, 0)));
  EXPECT_EQ(store.state().failed, 1);
  store.write(name_of(store, 0), page_of(0));
  store.flush();
  EXPECT_TRUE(reads(store, 0));
}

TEST(PageStore, AFileUnderAnotherNameIsNotTaken) {
  const TemporaryDirectory folder;
  fill(folder.path(), 2);
  const std::vector<fs::path> files = files_in(folder.path());
  fs::copy_file(files[0], files[1], fs::copy_options::overwrite_existing);
  PageStore store(folder.path(), "model", kBytes, kRoom);
  EXPECT_EQ(reads(store, 0) + reads(store, 1), 1);
}

TEST(PageStore, LeastLatelyUsedGoFirst) {
  const TemporaryDirectory folder;
  {
    PageStore store(folder.path(), "model", kBytes, 4 * kFileBytes);
    for (int i = 0; i < 4; ++i) {
      store.write(name_of(store, i), page_of(i));
      store.flush();
    }
    EXPECT_TRUE(reads(store, 0));
    for (int i = 4; i < 6; ++i) store.write(name_of(store, i), page_of(i));
    store.flush();
    EXPECT_EQ(store.state().pages, 4);
    for (const auto& [n, is_there] : {std::pair(0, true), {1, false}, {2, false}, {3, true}, {4, true}, {5, true}}) {
      EXPECT_EQ(store.has(name_of(store, n)), is_there) << n;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // files' times are coarse
    EXPECT_TRUE(reads(store, 0));
  }
  EXPECT_EQ(files_in(folder.path()).size(), 4u);
  PageStore smaller(folder.path(), "model", kBytes, 1 * kFileBytes);
  EXPECT_TRUE(reads(smaller, 0)) << "the order of use outlives the program";
  EXPECT_EQ(files_in(folder.path()).size(), 1u);
}

TEST(PageStore, RemovesWhatIsHalfWrittenAndLeavesOtherFilesAlone) {
  const TemporaryDirectory folder;
  fill(folder.path(), 1);
  const fs::path partial = fs::path(files_in(folder.path())[0]) += ".partial", mine = folder.path() / "notes.txt";
  for (const fs::path& path : {partial, mine}) std::ofstream(path) << "x";
  PageStore store(folder.path(), "model", kBytes, kRoom);
  EXPECT_FALSE(fs::exists(partial));
  EXPECT_TRUE(fs::exists(mine));
}

TEST(PageStore, PagesOfAnotherSizeAndFilesOfOthersStay) {
  const TemporaryDirectory folder;
  fill(folder.path(), 3);
  const fs::path mine = files_in(folder.path())[0].parent_path();
  for (const char* name : {"thesis.partial", "x.page", "notes"}) std::ofstream(mine / name) << "x";
  { const PageStore other(folder.path(), "another model", 2 * kBytes, kRoom); }
  for (const char* name : {"thesis.partial", "x.page", "notes"}) EXPECT_TRUE(fs::exists(mine / name)) << name;
  PageStore store(folder.path(), "model", kBytes, kRoom);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(reads(store, i));
}

TEST(PageStore, IsOfOneUserAndOneProcess) {
  const TemporaryDirectory parent;
  const fs::path folder = parent.path() / "a" / "b";
  {
    const PageStore store(folder, "model", kBytes, kRoom);
    struct stat s {};
    ASSERT_EQ(stat(folder.c_str(), &s), 0);
    EXPECT_EQ(s.st_mode & 0777, 0700u);
    EXPECT_THROW(PageStore(folder, "model", kBytes, kRoom), Error);
  }
  chmod(folder.c_str(), 0750);
  EXPECT_THROW(PageStore(folder, "model", kBytes, kRoom), Error);
}

TEST(PageStore, GoesOnWhereFilesCannotBeWritten) {
  const TemporaryDirectory folder;
  PageStore store(folder.path(), "model", kBytes, kRoom);
  for (int i = 0; i < 256; ++i) std::ofstream(folder.path() / fmt::format("{:02x}", i)) << "in the way";
  for (const int n : {1, 2}) store.write(name_of(store, n), page_of(n));
  store.flush();
  EXPECT_EQ(store.state().failed, 2);
  EXPECT_FALSE(reads(store, 1));
  for (int i = 0; i < 256; ++i) fs::remove(folder.path() / fmt::format("{:02x}", i));
  store.write(name_of(store, 1), page_of(1));
  store.flush();
  EXPECT_TRUE(reads(store, 1));
}

TEST(PageStore, AModelIsToldFromAnother) {
  const TemporaryDirectory folder;
  const auto write = [&](const char* name, const char* content) { std::ofstream(folder.path() / name) << content; };
  write("model.safetensors", "abc");
  write("config.json", "{}");
  const std::string before = identity_of_model(folder.path());
  EXPECT_EQ(identity_of_model(folder.path()), before);
  fs::last_write_time(folder.path() / "model.safetensors", fs::file_time_type::clock::now() - std::chrono::hours(1));
  EXPECT_NE(identity_of_model(folder.path()), before);
  EXPECT_NE(identity_of_model(folder.path() / "config.json"), identity_of_model(folder.path() / "model.safetensors"));
  EXPECT_THROW(identity_of_model(folder.path() / "nothing"), Error);
}

}  // namespace
}  // namespace fathom
