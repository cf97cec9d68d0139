#include "serve/access.h"

#include <strings.h>

#include <algorithm>
#include <string_view>

#include "serve/request.h"

namespace fathom::serve {

void check_origin(const Access& access, const HttpRequest& request) {
  const std::string* host = request.header("host");
  if (host != nullptr && !access.hosts.include(*host)) {  // no browser speaks HTTP/1.0, which has none
    throw ApiError(403, "the Host header names no host of this server (--allowed-host)", "", "host_not_allowed");
  }
  const std::string* origin = request.header("origin");
  if (origin == nullptr) return;
  const bool own = host != nullptr && is_own_origin(*origin, *host);
  const auto is_it = [&](const std::string& allowed) { return allowed == "*" || allowed == *origin; };
  if (!own && std::none_of(access.cors_origins.begin(), access.cors_origins.end(), is_it)) {
    throw ApiError(403, "pages of this origin may not ask here", "", "origin_not_allowed");
  }
}

std::optional<size_t> check_key(const Access& access, const HttpRequest& request) {
  if (!access.keys.required()) return std::nullopt;
  constexpr std::string_view kBearer = "Bearer ";  // in either case, as RFC 9110 has it
  std::string_view key;
  if (const std::string* header = request.header("authorization");
      header != nullptr && strncasecmp(header->c_str(), kBearer.data(), kBearer.size()) == 0) {
    key = std::string_view(*header).substr(kBearer.size());
  } else if (const std::string* plain = request.header("x-api-key")) {
    key = *plain;
  }
  const std::optional<size_t> found = access.keys.find(key);
  if (!found)
    throw ApiError(401, key.empty() ? "an API key is needed: Authorization: Bearer KEY" : "this API key is not known",
                   "", "invalid_api_key");
  return found;
}

}  // namespace fathom::serve
