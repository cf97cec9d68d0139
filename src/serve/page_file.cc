#include "serve/page_file.h"

#include <algorithm>
#include <string>
#include <utility>

#include "serve/embedded.h"

namespace fathom::serve {

std::optional<PageFile> find_page_file(std::string_view page, std::string_view path) {
  const std::string name(path == "/" ? "/index.html" : path);
  const std::string_view content = embedded_file(std::string(page) + name);
  if (content.empty()) return std::nullopt;
  const size_t dot = name.rfind('.');
  const std::string_view kind = dot == std::string::npos ? "html" : std::string_view(name).substr(dot + 1);
  constexpr std::pair<std::string_view, const char*> kTypes[] = {{"html", "text/html; charset=utf-8"},
                                                                 {"js", "text/javascript; charset=utf-8"},
                                                                 {"css", "text/css; charset=utf-8"},
                                                                 {"json", "application/json"},
                                                                 {"svg", "image/svg+xml"},
                                                                 {"woff2", "font/woff2"},
                                                                 {"txt", "text/plain; charset=utf-8"}};
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes), [&](const auto& t) { return t.first == kind; });
  return PageFile{type != std::end(kTypes) ? type->second : "application/octet-stream", content};
}

HttpHeaders page_headers() {
  return {{"Cache-Control", "no-cache"},
          {"Referrer-Policy", "no-referrer"},
          {"Cross-Origin-Opener-Policy", "same-origin"},
          {"Cross-Origin-Resource-Policy", "same-origin"},
          {"Content-Security-Policy",
           "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data:; "
           "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"}};
}

}  // namespace fathom::serve
