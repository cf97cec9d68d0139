// Pages of latent caches (model/cache.h), and which of them later sequences can share: a page holds kCachePageRows
// tokens, and whoever begins with the same tokens up to its end, and the same salt, may read it instead of computing it
// again. What nobody uses stays until the room is needed, least recently used first. Not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/buffer.h"

namespace fathom {

using PageId = int32_t;

class PagePool {
 public:
  // n_pages of page_bytes each, which are taken from the system when they are touched. ahead: tokens behind a page that
  // what it holds depends on too.
  PagePool(int64_t page_bytes, int64_t page_tokens, int64_t n_pages, int64_t ahead = 0);

  // The longest row of shared pages whose tokens `ids` begins with; each is held by the caller, as are taken ones.
  // Pages that would reach beyond the last but one of `ids` are left out: something must be left to compute.
  std::vector<PageId> find(std::string_view salt, std::span<const int32_t> ids);
  // A page of one's own. Nothing when all are held.
  std::optional<PageId> take();
  // Shares a taken page that is full, behind `before` (its sequence's page before it, which is shared too, or nothing).
  // Where an equal one is shared already the caller gets that, and holds it instead. page_tokens + ahead ids.
  PageId share(std::string_view salt, std::optional<PageId> before, std::span<const int32_t> ids, PageId page);
  // Ends the caller's hold. What is not shared is free then.
  void release(PageId page);
  // Forgets what is shared and held by nobody.
  void clear();

  char* data(PageId page) const;
  int64_t page_bytes() const { return page_bytes_; }
  int64_t n_pages() const { return static_cast<int64_t>(pages_.size()); }
  int64_t n_held() const { return n_held_; }  // by somebody
  int64_t n_shared() const { return static_cast<int64_t>(shared_.size()); }
  int64_t n_evicted() const { return n_evicted_; }

 private:
  // What a shared page is found by: the shared page before it, and its tokens. `before` numbers what was shared, not
  // pages, so that a page that holds something else by now is not meant.
  struct Key {
    int64_t before;    // 0: none
    std::string salt;  // of a first page
    std::vector<int32_t> ids;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };
  struct Page {
    int64_t holders = 0;
    int64_t shared_as = 0;  // 0: not
    int64_t children = 0;   // shared pages behind it
    int64_t last_used = 0;
    std::optional<PageId> before;
    const Key* key = nullptr;  // in shared_
  };

  Key key_of(std::string_view salt, std::optional<PageId> before, std::span<const int32_t> ids) const;
  void hold(PageId page);
  void note_if_idle(PageId page);  // that nobody needs it
  void forget(PageId page);        // an idle one

  int64_t page_bytes_, page_tokens_, ahead_;
  Buffer memory_;
  std::vector<Page> pages_;
  std::vector<PageId> free_;
  std::unordered_map<Key, PageId, KeyHash> shared_;
  std::set<std::pair<int64_t, PageId>> idle_;  // shared, with neither holders nor children, by last use
  int64_t clock_ = 0, shares_ = 0, n_held_ = 0, n_evicted_ = 0;
};

}  // namespace fathom
