// What people see while work goes on: log lines and a progress bar, all on stderr.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace fathom {

void set_quiet(bool quiet);  // --quiet: nothing but errors
bool quiet();

// One line on stderr; a progress bar in view is moved below it.
void log_line(std::string_view line);
template <class... Args>
void log(fmt::format_string<Args...> format, Args&&... args) {
  if (!quiet()) log_line(fmt::format(format, std::forward<Args>(args)...));
}

// A bar with rate and time left on a terminal, a plain line about every ten seconds where stderr is none.
class Progress {
 public:
  // `done` of them were done before: they say nothing of the time that the rest takes.
  Progress(std::string what, int64_t total, int64_t done = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // `done` of `total`; `note` (loss, tokens/s) stands behind the bar. Cheap: draws at most ten times a second.
  void update(int64_t done, std::string_view note = {});
  void finish();  // takes the bar away

 private:
  void draw(double now_s, std::string_view note);
  std::string what_;
  int64_t total_, done_, done_before_;
  double start_s_, drawn_s_ = -1e9;
  bool terminal_, in_view_ = false;
};

double monotonic_s();                        // seconds of a clock that only goes forward
std::string human_duration(double seconds);  // "42s", "3m05s", "2h10m"
std::string human_bytes(double bytes);       // "1.4 GiB"
std::string human_count(double n);           // "671.0B", "15.7M", "512"

}  // namespace fathom
