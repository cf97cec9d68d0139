// The names that a server goes by. A page of somebody else's whose name leads here, at first or later, must not be able
// to ask: the browser says in Host which name it was.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fathom::serve {

struct HostNames {
  bool any = true;                   // there is nothing to guard, or something else does
  bool addresses = false;            // every numerical one
  std::vector<std::string> names{};  // without ports; letters' case does not matter

  // host: of a Host header, NAME, NAME:PORT, ADDRESS or [ADDRESS]:PORT.
  bool include(std::string_view host) const;
};

// What `listening` (an address, a name or unix:PATH) and this machine are called, and `more`. Where keys guard, any
// name does unless there are more.
HostNames host_names(const std::string& listening, bool guarded_by_keys, const std::vector<std::string>& more);

bool is_loopback(const std::string& listening);
// Whether a page of this origin ("http://NAME:PORT") came from this host itself.
bool is_own_origin(std::string_view origin, std::string_view host);

}  // namespace fathom::serve
