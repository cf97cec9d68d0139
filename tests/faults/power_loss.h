// What a disk may hold after the power went away in the middle of recorded calls. A file system must keep what was
// synced and may keep of the rest what it likes, in any order: here each write that was not synced is there, or not, or
// some of its sectors, or zeros of its length; each change of a directory's names that was not synced is there or not.
// Syncing a file keeps no name of it, and syncing a folder nothing of its files. Names of one folder change in order;
// a later change may be there where an earlier one is not.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/rng.h"
#include "faults/file_calls.h"

namespace fathom::test {

using Tree = std::map<std::string, std::optional<std::string>>;  // content of files by path; nothing for directories

Tree read_tree(const std::filesystem::path& root);

// A directory on this machine that is made to hold one tree after another; only what differs is written.
class TreeDirectory {
 public:
  explicit TreeDirectory(std::filesystem::path root) : root_(std::move(root)) {}
  void hold(const Tree& tree);
  void forget();  // what it holds, which somebody else has changed

 private:
  std::filesystem::path root_;
  Tree held_;
};

class Disk {
 public:
  Disk(const std::filesystem::path& root, const Tree& tree);  // all of it synced
  void apply(const FileCall& call);

  // How much of what was not synced is there: the part of the changes of names, of writes, and of those writes that are
  // torn.
  struct Luck {
    double names, writes, torn;
  };
  Tree after_power_loss(Luck luck, Rng& rng) const;

 private:
  struct Write {
    size_t offset;
    std::string data;
    bool empties;  // the file, before
  };
  struct NameChange {
    std::string name, renamed_from;
    std::optional<size_t> node;  // nothing: removed
  };
  struct Node {
    bool is_directory;
    std::string content;                   // what is on disk,
    std::vector<Write> writes;             // and what is not yet
    std::map<std::string, size_t> names;   // of a directory: likewise,
    std::vector<NameChange> name_changes;  //
    std::map<std::string, size_t> seen;    // and as the program sees it
  };
  size_t find(const std::filesystem::path& path) const;
  void change(const std::filesystem::path& path, NameChange change);
  void add_to(Tree& tree, const std::string& path, const Node& node, Luck luck, Rng& rng) const;

  std::filesystem::path root_;
  std::vector<Node> nodes_;  // the first is the root
  std::map<int, size_t> open_;
};

}  // namespace fathom::test
