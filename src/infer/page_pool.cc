#include "infer/page_pool.h"

#include <xxhash.h>

#include "base/error.h"

namespace fathom {

PagePool::PagePool(int64_t page_bytes, int64_t page_tokens, int64_t n_pages, int64_t ahead)
    : page_bytes_(page_bytes),
      page_tokens_(page_tokens),
      ahead_(ahead),
      memory_(static_cast<size_t>(page_bytes * n_pages)),
      pages_(static_cast<size_t>(n_pages)) {
  for (int64_t page = n_pages; page-- > 0;) free_.push_back(static_cast<PageId>(page));
}

char* PagePool::data(PageId page) const { return static_cast<char*>(memory_.data()) + page * page_bytes_; }

size_t PagePool::KeyHash::operator()(const Key& key) const {
  const uint64_t seed = XXH3_64bits_withSeed(key.salt.data(), key.salt.size(), static_cast<uint64_t>(key.before));
  return XXH3_64bits_withSeed(key.ids.data(), key.ids.size() * sizeof(int32_t), seed);
}

PagePool::Key PagePool::key_of(std::string_view salt, std::optional<PageId> before,
                               std::span<const int32_t> ids) const {
  const int64_t shared_as = before ? pages_[static_cast<size_t>(*before)].shared_as : 0;
  FATHOM_CHECK(!before || shared_as > 0, "page {} is not shared", *before);
  return {shared_as, before ? std::string() : std::string(salt), {ids.begin(), ids.end()}};
}

void PagePool::hold(PageId id) {
  Page& page = pages_[static_cast<size_t>(id)];
  if (page.holders++ == 0) {
    ++n_held_;
    idle_.erase({page.last_used, id});
  }
  page.last_used = ++clock_;
}

void PagePool::note_if_idle(PageId id) {
  const Page& page = pages_[static_cast<size_t>(id)];
  if (page.holders == 0 && page.children == 0 && page.shared_as > 0) idle_.emplace(page.last_used, id);
}

std::vector<PageId> PagePool::find(std::string_view salt, std::span<const int32_t> ids) {
  std::vector<PageId> found;
  const auto n = static_cast<size_t>(page_tokens_);
  const auto n_key = static_cast<size_t>(page_tokens_ + ahead_);
  while ((found.size() + 1) * n < ids.size() && found.size() * n + n_key <= ids.size()) {
    const auto before = found.empty() ? std::nullopt : std::optional(found.back());
    const auto next = shared_.find(key_of(salt, before, ids.subspan(found.size() * n, n_key)));
    if (next == shared_.end()) break;
    found.push_back(next->second);
  }
  // The last first: what is behind a page was used no later than it.
  for (auto page = found.rbegin(); page != found.rend(); ++page) hold(*page);
  return found;
}

std::optional<PageId> PagePool::take() {
  if (free_.empty()) {
    if (idle_.empty()) return std::nullopt;
    forget(idle_.begin()->second);
    ++n_evicted_;
  }
  const PageId page = free_.back();
  free_.pop_back();
  hold(page);
  return page;
}

PageId PagePool::share(std::string_view salt, std::optional<PageId> before, std::span<const int32_t> ids, PageId id) {
  FATHOM_CHECK(std::ssize(ids) == page_tokens_ + ahead_);
  const auto [found, is_new] = shared_.try_emplace(key_of(salt, before, ids), id);
  if (!is_new) {
    if (found->second == id) return id;
    hold(found->second);
    release(id);
    return found->second;
  }
  Page& page = pages_[static_cast<size_t>(id)];
  FATHOM_CHECK(page.holders > 0 && page.shared_as == 0, "page {} cannot be shared", id);
  page.shared_as = ++shares_;
  page.before = before;
  page.key = &found->first;
  if (before) ++pages_[static_cast<size_t>(*before)].children;
  return id;
}

void PagePool::release(PageId id) {
  Page& page = pages_[static_cast<size_t>(id)];
  FATHOM_CHECK(page.holders > 0, "page {} is held by nobody", id);
  if (--page.holders > 0) return;
  --n_held_;
  if (page.shared_as == 0) {
    free_.push_back(id);
  } else {
    note_if_idle(id);
  }
}

void PagePool::forget(PageId id) {
  Page& page = pages_[static_cast<size_t>(id)];
  idle_.erase({page.last_used, id});
  shared_.erase(shared_.find(*page.key));
  const std::optional<PageId> before = page.before;
  page = {};
  free_.push_back(id);
  if (!before) return;
  --pages_[static_cast<size_t>(*before)].children;
  note_if_idle(*before);
}

void PagePool::clear() {
  while (!idle_.empty()) forget(idle_.begin()->second);
}

}  // namespace fathom
