#include "faults/power_loss.h"

#include <algorithm>
#include <fstream>

#include "base/error.h"
#include "base/file.h"

namespace fathom::test {
namespace {

namespace fs = std::filesystem;

constexpr size_t kSector = 512;

void write_at(std::string& content, size_t offset, std::string_view data) {
  content.resize(std::max(content.size(), offset + data.size()));
  std::ranges::copy(data, content.begin() + static_cast<int64_t>(offset));
}

bool chance(Rng& rng, double part) { return part >= 1 || (part > 0 && rng.uniform() < part); }

}  // namespace

Tree read_tree(const fs::path& root) {
  Tree tree;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    const std::string path = entry.path().lexically_relative(root);
    tree[path] = entry.is_directory() ? std::nullopt : std::optional(read_file(entry.path(), size_t{1} << 30));
  }
  return tree;
}

void TreeDirectory::hold(const Tree& tree) {
  for (auto held = held_.rbegin(); held != held_.rend(); ++held) {  // what is in a folder before the folder
    const auto wanted = tree.find(held->first);
    const bool stays = wanted != tree.end() && wanted->second.has_value() == held->second.has_value();
    if (!stays) fs::remove(root_ / held->first);
  }
  for (const auto& [path, content] : tree) {
    const auto held = held_.find(path);
    if (held != held_.end() && held->second == content) continue;
    if (content) {
      std::ofstream(root_ / path, std::ios::binary) << *content;
    } else {
      fs::create_directory(root_ / path);
    }
  }
  held_ = tree;
}

void TreeDirectory::forget() {
  fs::remove_all(root_);
  fs::create_directories(root_);
  held_.clear();
}

Disk::Disk(const fs::path& root, const Tree& tree) : root_(root) {
  nodes_.push_back({.is_directory = true});
  for (const auto& [path, content] : tree) {
    const size_t parent = find(root_ / fs::path(path).parent_path());
    nodes_.push_back({.is_directory = !content, .content = content.value_or("")});
    const std::string name = fs::path(path).filename();
    nodes_[parent].names[name] = nodes_[parent].seen[name] = nodes_.size() - 1;
  }
}

size_t Disk::find(const fs::path& path) const {
  size_t node = 0;
  for (const fs::path& name : path.lexically_relative(root_)) {
    if (name == "." || name.empty()) continue;
    const auto found = nodes_[node].seen.find(name);
    FATHOM_CHECK(found != nodes_[node].seen.end(), "{}", path.native());
    node = found->second;
  }
  return node;
}

void Disk::change(const fs::path& path, NameChange c) {
  Node& parent = nodes_[find(path.parent_path())];
  c.name = path.filename();
  parent.seen.erase(c.renamed_from);
  if (c.node) {
    parent.seen[c.name] = *c.node;
  } else {
    parent.seen.erase(c.name);
  }
  parent.name_changes.push_back(std::move(c));
}

void Disk::apply(const FileCall& call) {
  const fs::path path = call.path;
  switch (call.call) {
    case Call::open:
      if (call.created) {
        nodes_.push_back({.is_directory = false});
        change(path, {"", "", nodes_.size() - 1});
      }
      open_[call.fd] = find(path);
      if (call.emptied) nodes_[open_[call.fd]].writes.push_back({0, "", true});
      return;
    case Call::write:
    case Call::pwrite:
      nodes_[open_.at(call.fd)].writes.push_back({static_cast<size_t>(call.offset), call.data, false});
      return;
    case Call::fsync: {
      Node& node = nodes_[open_.at(call.fd)];
      for (const Write& w : node.writes) {
        if (w.empties) node.content.clear();
        write_at(node.content, w.offset, w.data);
      }
      node.writes.clear();
      node.names = node.seen;
      node.name_changes.clear();
      return;
    }
    case Call::close:
      open_.erase(call.fd);
      return;
    case Call::rename:
      FATHOM_CHECK(path.parent_path() == fs::path(call.to).parent_path());
      change(call.to, {"", path.filename(), find(path)});
      return;
    case Call::unlink:
    case Call::rmdir:
      change(path, {});
      return;
    case Call::mkdir:
      nodes_.push_back({.is_directory = true});
      change(path, {"", "", nodes_.size() - 1});
  }
}

void Disk::add_to(Tree& tree, const std::string& path, const Node& node, Luck luck, Rng& rng) const {
  if (!node.is_directory) {
    std::string content = node.content;
    for (const Write& w : node.writes) {
      if (!chance(rng, luck.writes)) continue;
      if (w.empties) content.clear();
      if (!chance(rng, luck.torn)) {
        write_at(content, w.offset, w.data);
        continue;
      }
      const auto kind = rng.below(3);  // a beginning, some sectors, or zeros alone
      const size_t beginning = rng.below(w.data.size() / kSector + 1) * kSector;
      if (kind == 2) write_at(content, w.offset, std::string(w.data.size(), '\0'));
      for (size_t at = 0; kind < 2 && at < w.data.size();) {
        const size_t n = std::min(kSector - (w.offset + at) % kSector, w.data.size() - at);
        if (kind == 0 ? at < beginning : chance(rng, 0.5)) write_at(content, w.offset + at, w.data.substr(at, n));
        at += n;
      }
    }
    tree[path] = std::move(content);
    return;
  }
  if (!path.empty()) tree[path] = std::nullopt;
  std::map<std::string, size_t> names = node.names;
  for (const NameChange& c : node.name_changes) {
    if (!chance(rng, luck.names)) continue;
    names.erase(c.renamed_from);
    if (c.node) {
      names[c.name] = *c.node;
    } else {
      names.erase(c.name);
    }
  }
  // A file that an unsynced rename left out of order under two names is taken under both.
  for (const auto& [name, child] : names)
    add_to(tree, path.empty() ? name : path + "/" + name, nodes_[child], luck, rng);
}

Tree Disk::after_power_loss(Luck luck, Rng& rng) const {
  Tree tree;
  add_to(tree, "", nodes_[0], luck, rng);
  return tree;
}

}  // namespace fathom::test
