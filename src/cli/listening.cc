// What the servers share: where they listen, and who may ask.
#include <CLI/CLI.hpp>

#include "base/error.h"
#include "cli/command.h"

namespace fathom::cli {
namespace {

bool is_loopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.") || host.starts_with("unix:");
}

}  // namespace

void add_listen_options(CLI::App& command, ListenOptions& o) {
  command.add_option("--host", o.host, "Address to listen on, or unix:PATH");
  command.add_option("--port", o.port, "Port to listen on; 0 takes a free one, which stdout tells");
  command.add_option("--api-key-file", o.key_file, "Who asks must have one of these keys, one a line (chmod 600)")
      ->type_name("FILE");
  command.add_flag("--no-key", o.without_key, "Let other machines in without a key");
  command
      .add_option("--allowed-host", o.allowed_hosts,
                  "Name that requests may give the server (may be given again; default: any, on this machine its own)")
      ->allow_extra_args(false);
}

serve::Access access_of(const ListenOptions& o, std::string_view command) {
  serve::Access access;
  if (!o.key_file.empty()) access.keys = serve::ApiKeys::read(o.key_file);
  if (!access.keys.required() && !is_loopback(o.host) && !o.without_key) {
    throw UsageError("{}: --host {} lets other machines in: give --api-key-file FILE, or --no-key if that is meant",
                     command, printable(o.host));
  }
  access.allowed_hosts = o.allowed_hosts;
  if (is_loopback(o.host) && !o.host.starts_with("unix:")) {
    for (const char* name : {"localhost", "127.0.0.1", "[::1]"}) access.allowed_hosts.emplace_back(name);
    access.allowed_hosts.push_back(o.host);
  }
  return access;
}

std::string url_of(const std::string& host, uint16_t port) {
  if (host.starts_with("unix:")) return host;
  return fmt::format("http://{}:{}", host.find(':') == std::string::npos ? host : "[" + host + "]", port);
}

}  // namespace fathom::cli
