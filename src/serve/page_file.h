// The pages' files, and how they are served.
#pragma once

#include <optional>
#include <string_view>

#include "serve/http.h"

namespace fathom::serve {

struct PageFile {
  const char* content_type;
  std::string_view content;
};

// What stands at the path of a request ("/" is index.html) of a page: "chat", "watch". None where there is no such
// file.
std::optional<PageFile> find_page_file(std::string_view page, std::string_view path);

// Nothing on a page comes from elsewhere, no text becomes a script or a style, and nobody may frame it.
HttpHeaders page_headers();

}  // namespace fathom::serve
