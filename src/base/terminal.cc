#include "base/terminal.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>

namespace fathom {
namespace {

std::atomic<bool> quiet_flag{false};
bool bar_in_view = false;

void erase_bar() {
  if (bar_in_view) std::fputs("\r\033[K", stderr);
  bar_in_view = false;
}

}  // namespace

void set_quiet(bool quiet) { quiet_flag = quiet; }
bool quiet() { return quiet_flag; }

void log_line(std::string_view line) {
  erase_bar();
  fmt::print(stderr, "{}\n", line);
}

Progress::Progress(std::string what, int64_t total, int64_t done)
    : what_(std::move(what)),
      total_(total),
      done_(done),
      done_before_(done),
      start_s_(monotonic_s()),
      terminal_(isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() { finish(); }

void Progress::update(int64_t done, std::string_view note) {
  done_ = done;
  if (quiet()) return;
  const double now = monotonic_s();
  if (now - drawn_s_ < (terminal_ ? 0.1 : 10.0) && done < total_) return;
  if (!terminal_ && drawn_s_ < 0) {  // the first plain line comes after ten seconds, not at once
    drawn_s_ = now;
    if (done < total_) return;
  }
  drawn_s_ = now;
  draw(now, note);
}

void Progress::draw(double now_s, std::string_view note) {
  const double part = total_ > 0 ? std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0) : 0;
  std::string eta;
  if (const int64_t n = done_ - done_before_; n > 0) {
    eta = human_duration((now_s - start_s_) * static_cast<double>(total_ - done_) / static_cast<double>(n)) + " left";
  }
  if (!terminal_) {
    fmt::print(stderr, "{} {}/{} {} {}\n", what_, done_, total_, note, eta);
    return;
  }
  constexpr int kWidth = 24;
  const int filled = static_cast<int>(part * kWidth);
  std::string bar;
  for (int i = 0; i < kWidth; ++i) bar += i < filled ? "█" : "░";
  fmt::print(stderr, "\r\033[K{} {} {:3.0f}% {} {}", what_, bar, part * 100, note, eta);
  std::fflush(stderr);
  bar_in_view = in_view_ = true;
}

void Progress::finish() {
  if (in_view_) erase_bar();
  in_view_ = false;
}

double monotonic_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string human_duration(double seconds) {
  const auto s = static_cast<int64_t>(std::lround(std::clamp(seconds, 0.0, 1e12)));
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
}

std::string human_bytes(double bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  int unit = 0;
  for (; bytes >= 1024 && unit < 5; ++unit) bytes /= 1024;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, units[unit]);
}

std::string human_count(double n) {
  if (n >= 1e12) return fmt::format("{:.1f}T", n / 1e12);
  if (n >= 1e9) return fmt::format("{:.1f}B", n / 1e9);
  if (n >= 1e6) return fmt::format("{:.1f}M", n / 1e6);
  if (n >= 1e4) return fmt::format("{:.1f}K", n / 1e3);
  return fmt::format("{:.0f}", n);
}

}  // namespace fathom
