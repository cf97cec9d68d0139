// Who may ask a server: by the names that requests give it, the pages that they come from, and keys.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "serve/hosts.h"
#include "serve/http.h"
#include "serve/keys.h"

namespace fathom::serve {

struct Access {
  ApiKeys keys;
  std::vector<std::string> cors_origins;  // pages of these may ask; "*": all
  HostNames hosts;                        // that Host may name
};

// A page of somebody else's must not speak to a server on its reader's machine, by its name or by a name of the page's:
// ApiError 403.
void check_origin(const Access& access, const HttpRequest& request);
// Which of the keys the request has; none where nobody has to have one. ApiError 401.
std::optional<size_t> check_key(const Access& access, const HttpRequest& request);

}  // namespace fathom::serve
