#include "text/token_shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <fstream>

#include "base/rng.h"
#include "refusal.h"
#include "text/tokenizer_fixture.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using test::slurp, testing::HasSubstr;
using Ids = std::vector<int32_t>;

std::string open_refusal(const fs::path& directory) {
  static ThreadPool pool(1);
  return refusal([&] { open_token_dataset(directory, pool); });
}

// Documents of random ids, the last of which is always 1.
std::vector<Ids> random_documents(int64_t vocab_size, int64_t n) {
  Rng rng(static_cast<uint64_t>(n));
  std::vector<Ids> documents(static_cast<size_t>(n));
  for (Ids& ids : documents) {
    ids.resize(rng.below(3000));
    for (int32_t& id : ids) id = static_cast<int32_t>(rng.below(static_cast<uint64_t>(vocab_size)));
    ids.push_back(1);
  }
  return documents;
}

DatasetInfo info_for(int64_t vocab_size) {
  DatasetInfo info;
  info.tokenizer = "random";
  info.tokenizer_xxh3 = "0123456789abcdef";
  info.vocab_size = vocab_size;
  info.eos_id = 1;
  info.token_bytes = vocab_size <= 65536 ? 2 : 4;
  info.fim_rate = 0.1;
  info.fim_seed = UINT64_MAX;
  info.sources = {{"a \"b\".txt", 7, -3}};
  return info;
}

DatasetInfo write(const fs::path& directory, int64_t vocab_size, const std::vector<Ids>& documents,
                  int64_t max_shard_bytes = kMaxTokenShardBytes) {
  DatasetWriter writer(directory, info_for(vocab_size), max_shard_bytes);
  for (const Ids& document : documents) writer.append(document);
  return writer.commit();
}

Ids joined(const std::vector<Ids>& documents) {
  Ids all;
  for (const Ids& ids : documents) all.insert(all.end(), ids.begin(), ids.end());
  return all;
}

Ids copied(const TokenIds& ids, int64_t begin, int64_t n) {
  Ids out(static_cast<size_t>(n));
  ids.copy(begin, out);
  return out;
}

TEST(TokenShards, GiveBackWhatWasWrittenInShardsOfAnySize) {
  const test::TemporaryDirectory directory;
  ThreadPool pool(2);
  std::set<uint64_t> checksums;
  for (const int64_t vocab_size : {300, 65536, 65537, 129280}) {
    const auto documents = random_documents(std::min<int64_t>(vocab_size, 300), 100);
    const Ids all = joined(documents);
    const auto n = static_cast<int64_t>(all.size());
    for (const int64_t shard_bytes : {int64_t{28}, int64_t{20'000}, int64_t{200'000}, kMaxTokenShardBytes}) {
      if (shard_bytes == 28 && vocab_size != 300) continue;  // many files
      const auto few = shard_bytes == 28 ? std::vector<Ids>{Ids(all.begin(), all.begin() + 101)} : documents;
      const Ids wanted = joined(few);
      const DatasetInfo written = write(directory.path() / "d", vocab_size, few, shard_bytes);
      const TokenDataset read = open_token_dataset(directory.path() / "d", pool);
      EXPECT_EQ(read.info, written);
      EXPECT_EQ(read.info.n_documents, static_cast<int64_t>(few.size()));
      EXPECT_EQ(read.info.token_bytes, vocab_size <= 65536 ? 2 : 4);
      EXPECT_EQ(read.info.shards.size() > 1, n * read.info.token_bytes + 24 > shard_bytes);
      ASSERT_TRUE(copied(read.ids, 0, read.ids.size()) == wanted);
      if (shard_bytes != 28) checksums.insert(read.info.ids_xxh3);
      for (size_t i = 0; i < read.info.shards.size(); ++i) {
        EXPECT_LE(static_cast<int64_t>(fs::file_size(directory.path() / "d" / shard_name(i))), shard_bytes);
      }
      Rng rng(1);
      for (int i = 0; i < 200; ++i) {
        const auto begin = static_cast<int64_t>(rng.below(static_cast<uint64_t>(read.ids.size() + 1)));
        const auto length = static_cast<int64_t>(
            rng.below(static_cast<uint64_t>(std::min<int64_t>(read.ids.size() - begin, 2000)) + 1));
        ASSERT_TRUE(
            std::ranges::equal(copied(read.ids, begin, length),
                               std::span(wanted).subspan(static_cast<size_t>(begin), static_cast<size_t>(length))));
      }
    }
    const TokenIds in_memory(all);
    EXPECT_TRUE(in_memory.size() == n && copied(in_memory, 0, n) == all &&
                copied(in_memory, n - 5, 5) == Ids(all.end() - 5, all.end()));
    EXPECT_EQ(*checksums.begin(), XXH3_64bits(all.data(), all.size() * sizeof(int32_t)));
  }
  EXPECT_EQ(checksums.size(), 1U) << "depends on width or shards";
  EXPECT_EQ(TokenIds().size(), 0);
}

TEST(TokenShards, TheFormatIsTheDocumentedOne) {
  const test::TemporaryDirectory directory;
  write(directory.path() / "d", 70000, {{69999, 1}});
  EXPECT_EQ(slurp(directory.path() / "d/00000.tokens"),
            std::string("fathomtk\x01\0\0\0\x04\0\0\0\x02\0\0\0\0\0\0\0\x6f\x11\x01\0\x01\0\0\0", 32));
  const auto json = test::Json::parse(slurp(directory.path() / "d/dataset.json"));
  EXPECT_EQ(json["format"], "fathom-tokens");
  EXPECT_EQ(json["shards"][0]["file"], "00000.tokens");
  EXPECT_EQ(json["tokens"], 2);
  EXPECT_EQ(json["fim"]["rate"], 0.1);
  const std::string text = slurp(directory.path() / "d/dataset.json");
  const std::string body = text.substr(0, text.rfind(",\n \"xxh3\""));
  EXPECT_EQ(json["xxh3"], fmt::format("{:016x}", XXH3_64bits(body.data(), body.size())));
}

TEST(TokenShards, NoChangedBitPasses) {
  const test::TemporaryDirectory directory;
  const fs::path d = directory.path() / "d";
  write(d, 300, random_documents(300, 40), 30'000);
  const std::vector<std::string> names = {"dataset.json", "00000.tokens", "00001.tokens"};
  Rng rng(7);
  int undetected = 0;
  for (int i = 0; i < 10'000; ++i) {
    const std::string& name = names[rng.below(names.size())];
    std::fstream file(d / name, std::ios::in | std::ios::out | std::ios::binary);
    const auto header = rng.below(4) == 0;  // often: it is small
    const auto at = static_cast<std::streamoff>(rng.below(header ? 24 : fs::file_size(d / name)));
    file.seekg(at);
    const auto byte = static_cast<char>(file.get());
    const auto write_byte = [&](char value) {
      file.seekp(at);
      file.put(value);
      file.flush();
    };
    write_byte(static_cast<char>(byte ^ 1 << rng.below(8)));
    const std::string why = open_refusal(d);
    undetected += why.find(name) == std::string::npos;
    write_byte(byte);
  }
  EXPECT_EQ(undetected, 0);
  EXPECT_EQ(open_refusal(d), "(accepted)");
}

TEST(TokenShards, FilesThatAreCutLongerMissingOrExchangedAreRefused) {
  const test::TemporaryDirectory directory;
  const fs::path d = directory.path() / "d";
  write(d, 300, random_documents(300, 40), 30'000);
  const std::string first = slurp(d / "00000.tokens"), second = slurp(d / "00001.tokens"),
                    json = slurp(d / "dataset.json");
  for (const std::string& content :
       {std::string(), first.substr(0, 10), first.substr(0, 24), first.substr(0, first.size() - 1),
        first.substr(0, first.size() - 2), first + "x", first + "xy", second}) {
    directory.write("d/00000.tokens", content);
    EXPECT_THAT(open_refusal(d), HasSubstr("00000.tokens: ")) << content.size();
  }
  fs::remove(d / "00000.tokens");
  EXPECT_THAT(open_refusal(d), HasSubstr("00000.tokens: cannot open"));
  directory.write("d/00000.tokens", first);
  for (size_t size = 0; size < json.size(); size += 7) {
    directory.write("d/dataset.json", json.substr(0, size));
    EXPECT_THAT(open_refusal(d), HasSubstr("dataset.json: "));
  }
  directory.write("d/dataset.json", json);
  EXPECT_EQ(open_refusal(d), "(accepted)");
}

// `json` with its checksum made right again, as one who means harm would.
std::string sealed(const test::Json& json) {
  test::Json body = json;
  body.erase("xxh3");
  std::string text = body.dump(1);
  text.resize(text.size() - 2);
  return fmt::format("{},\n \"xxh3\": \"{:016x}\"\n}}\n", text, XXH3_64bits(text.data(), text.size()));
}

TEST(TokenShards, DatasetJsonIsCheckedWhoeverWroteIt) {
  const test::TemporaryDirectory directory;
  const fs::path d = directory.path() / "d";
  write(d, 300, {{299, 1}});
  const auto json = test::Json::parse(slurp(d / "dataset.json"));
  const auto refused = [&](const char* pointer, const test::Json& value) {
    test::Json changed = json;
    changed[test::Json::json_pointer(pointer)] = value;
    return refusal([&] { parse_dataset_json(sealed(changed), "dataset.json"); });
  };
  EXPECT_EQ(refused("/tokenizer/name", "other"), "(accepted)");
  EXPECT_THAT(refused("/format", "x"), HasSubstr("is no dataset of tokens"));
  EXPECT_THAT(refused("/version", 2), HasSubstr("is of version 2, this program reads 1"));
  EXPECT_THAT(refused("/tokens", 3), HasSubstr("tokens is 3, its shards have 2"));
  EXPECT_THAT(refused("/tokens", 0), HasSubstr("tokens is 0"));
  EXPECT_THAT(refused("/tokens", -1), HasSubstr("tokens is -1"));
  EXPECT_THAT(refused("/tokens", "2"), HasSubstr("tokens is missing or wrong"));
  EXPECT_THAT(refused("/shards/0/tokens", INT64_MAX), HasSubstr("shard 00000.tokens: tokens is"));
  EXPECT_THAT(refused("/shards/0/file", "../secret"), HasSubstr("shard 00000.tokens: has another name"));
  EXPECT_THAT(refused("/shards/0", 1), HasSubstr("is no object"));
  EXPECT_THAT(refused("/shards/0/xxh3", "0X00000000000000"), HasSubstr("is no checksum"));
  EXPECT_THAT(refused("/vocab_size", 0), HasSubstr("vocab_size is 0"));
  EXPECT_THAT(refused("/vocab_size", 70000), HasSubstr("token_bytes is 2, which does not fit"));
  EXPECT_THAT(refused("/eos_id", 300), HasSubstr("eos_id is 300"));
  EXPECT_THAT(refused("/token_bytes", 3), HasSubstr("token_bytes is 3"));
  EXPECT_THAT(refused("/fim/rate", 1.5), HasSubstr("rate is 1.5"));
  EXPECT_THAT(refused("/sources", 1), HasSubstr("sources is missing or wrong"));
  EXPECT_THAT(refused("/tokenizer/xxh3", "x"), HasSubstr("tokenizer: xxh3 is no checksum"));
  for (const auto& [key, value] : json.items()) {
    test::Json without = json;
    without.erase(key);
    EXPECT_NE(refusal([&] { parse_dataset_json(without.dump(1), "dataset.json"); }), "(accepted)") << key;
    if (key == "xxh3") continue;
    EXPECT_NE(refusal([&] { parse_dataset_json(sealed(without), "dataset.json"); }), "(accepted)") << key;
  }
  // Ids that the vocabulary lacks would be read beyond the embedding.
  test::Json smaller = json;
  smaller["vocab_size"] = 299;
  directory.write("d/dataset.json", sealed(smaller));
  EXPECT_THAT(open_refusal(d), HasSubstr("00000.tokens: has the id 299 of 299"));
}

TEST(TokenShards, OfAnotherTokenizerAreRefused) {
  const Tokenizer bytes = Tokenizer::bytes(), tiny = Tokenizer::load(test::text_data() / "tiny");
  const DatasetInfo of_bytes = dataset_for(bytes, "bytes"), of_tiny = dataset_for(tiny, "tiny");
  EXPECT_EQ(of_bytes.tokenizer_xxh3, "bytes");
  check_tokenizer(of_bytes, bytes, "d");
  check_tokenizer(of_tiny, tiny, "d");
  EXPECT_THAT(refusal([&] { check_tokenizer(of_tiny, bytes, "d"); }),
              HasSubstr("d: was made with a vocabulary of 617 ids"));
  std::string json = slurp(test::text_data() / "tiny/tokenizer.json");
  json += "\n";
  const Tokenizer other = Tokenizer::parse(json, "other");
  EXPECT_THAT(refusal([&] { check_tokenizer(of_tiny, other, "d"); }),
              HasSubstr("d: was made with another tokenizer (tiny, xxh3"));
  DatasetInfo other_end = of_tiny;
  other_end.eos_id = 5;
  EXPECT_THAT(refusal([&] { check_tokenizer(other_end, tiny, "d"); }), HasSubstr("end with id 5"));
}

TEST(DatasetWriter, NothingAppearsBeforeItIsWhole) {
  const test::TemporaryDirectory directory;
  const fs::path d = directory.path() / "new/d";
  {
    DatasetWriter writer(d, info_for(300), 100'000);
    for (const Ids& ids : random_documents(300, 300)) writer.append(ids);
    EXPECT_TRUE(fs::exists(directory.path() / "new/d.partial"));
    EXPECT_FALSE(fs::exists(d));
    EXPECT_THAT(refusal([&] { DatasetWriter(d, info_for(300)); }), HasSubstr("another process is at work there"));
  }
  EXPECT_FALSE(fs::exists(directory.path() / "new"));
  // What one that was killed left behind goes.
  fs::create_directories(directory.path() / "new/d.partial/x");
  directory.write("new/d.partial/00000.tokens", "half");
  write(d, 300, {{7, 1}});
  EXPECT_FALSE(fs::exists(directory.path() / "new/d.partial"));
  EXPECT_EQ(open_refusal(d), "(accepted)");
  EXPECT_THAT(refusal([&] { write(d, 300, {}); }), HasSubstr("there is no text in the data"));
  EXPECT_EQ(open_refusal(d), "(accepted)") << "the older one stays";
}

TEST(DatasetWriter, WritesOverADatasetAlone) {
  const test::TemporaryDirectory directory;
  const fs::path d = directory.path() / "d";
  write(d, 300, random_documents(300, 40), 1000);
  write(d.string() + "/", 300, {{7, 1}});
  EXPECT_FALSE(fs::exists(d / "00001.tokens"));
  directory.write("d/notes.txt", "mine");
  EXPECT_THAT(refusal([&] { write(d, 300, {{7, 1}}); }), HasSubstr("d: holds notes.txt, so it is no dataset"));
  EXPECT_TRUE(fs::exists(d / "notes.txt") && fs::exists(d / "dataset.json"));
  const auto file = directory.write("file", "");
  EXPECT_THAT(refusal([&] { write(file, 300, {{7, 1}}); }), HasSubstr("file: is a file"));
  fs::create_directories(directory.path() / "empty");
  write(directory.path() / "empty", 300, {{7, 1}});
  EXPECT_EQ(open_refusal(directory.path() / "empty"), "(accepted)");
}

}  // namespace
}  // namespace fathom
