#include "serve/hosts.h"

#include <arpa/inet.h>
#include <unistd.h>

#include <algorithm>

#include "serve/http.h"

namespace fathom::serve {
namespace {

constexpr std::string_view kUnix = "unix:";

bool same(std::string_view a, std::string_view b) { return lower_case(a) == lower_case(b); }

std::string_view without_port(std::string_view host) {
  const size_t colon = host.rfind(':');
  if (colon == std::string_view::npos || host.find(']', colon) != std::string_view::npos) return host;
  const bool is_port = host.find_first_not_of("0123456789", colon + 1) == std::string_view::npos;
  return is_port ? host.substr(0, colon) : host;
}

bool is_address(std::string_view name) {
  unsigned char bytes[16];
  if (name.starts_with('[') && name.ends_with(']') && name.size() > 2)
    return inet_pton(AF_INET6, std::string(name.substr(1, name.size() - 2)).c_str(), bytes) == 1;
  return inet_pton(AF_INET, std::string(name).c_str(), bytes) == 1;
}

}  // namespace

bool HostNames::include(std::string_view host) const {
  if (any) return true;
  const std::string_view name = without_port(host);
  if (addresses && is_address(name)) return true;
  return std::any_of(names.begin(), names.end(), [&](const std::string& own) { return same(own, name); });
}

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.") || host.starts_with(kUnix);
}

HostNames host_names(const std::string& listening, bool guarded_by_keys, const std::vector<std::string>& more) {
  HostNames hosts{.any = false, .names = more};
  const bool here = is_loopback(listening);
  if (more.empty() && (listening.starts_with(kUnix) || (!here && guarded_by_keys))) return {};
  for (const char* name : {"localhost", "127.0.0.1", "[::1]"}) hosts.names.emplace_back(name);
  hosts.names.push_back(listening.find(':') == std::string::npos ? listening : "[" + listening + "]");
  hosts.addresses = !here;
  if (char name[256] = {}; !here && gethostname(name, sizeof name - 1) == 0 && name[0] != '\0')
    hosts.names.emplace_back(name);
  return hosts;
}

bool is_own_origin(std::string_view origin, std::string_view host) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (same(origin.substr(0, scheme.size()), scheme) && same(origin.substr(scheme.size()), host)) return true;
  }
  return false;
}

}  // namespace fathom::serve
