// What memory there is, what of a mapped file lies in it, and what the kernel is told about that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace fathom {

// Bytes that this process may still fill: what the machine has available and what the limits of its cgroups (v1 or v2)
// leave. Cached file pages count as free, since they give way. `root` stands for / in tests. UINT64_MAX: unknown.
uint64_t available_memory_bytes(const std::filesystem::path& root = "/");
// Bytes that this process could have if nobody else had any: of the machine with its swap, or of its cgroups' limits.
uint64_t memory_limit_bytes(const std::filesystem::path& root = "/");
// Of the machine's swap, what is free; whether a cgroup may use it is not looked at.
uint64_t free_swap_bytes(const std::filesystem::path& root = "/");

// Whether the kernel tells this process what of a file is in memory. Of files of others it says that all is.
bool shows_residency(const std::filesystem::path& file);

// How many of these bytes of a mapping are in memory, by a sample of their pages.
int64_t resident_bytes(std::span<const std::byte> bytes);

// Starts reading these bytes of a mapped file; returns before they are there.
void read_ahead(std::span<const std::byte> bytes);

// Reading at places that do not follow each other: the kernel then reads what is asked for and nothing around it, which
// may be megabytes.
void expect_scattered_reads(std::span<const std::byte> bytes);

// Takes the pages of a mapped file out of this process; the system may keep them for the next who reads.
void give_back(std::span<const std::byte> bytes);

// Where a mapped file is not in memory yet it is read into huge pages, on systems whose files can lie in such.
void read_into_huge_pages(std::span<const std::byte> bytes);

// Takes these ranges into memory and keeps them there. Error, with the limit of RLIMIT_MEMLOCK, when that is refused.
void lock_in_memory(std::span<const std::span<const std::byte>> ranges);

// What the process has in huge pages; 0 where the system does not say.
uint64_t huge_page_bytes();
// What /sys/kernel/mm/transparent_hugepage/enabled says: "always", "madvise", "never", or "" where there is none.
std::string huge_page_policy(const std::filesystem::path& root = "/");

}  // namespace fathom
