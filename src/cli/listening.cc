// What the servers share: where they listen, and who may ask.
#include <CLI/CLI.hpp>

#include "base/error.h"
#include "cli/command.h"

namespace fathom::cli {

void add_listen_options(CLI::App& command, ListenOptions& o) {
  command.add_option("--host", o.host, "Address to listen on, or unix:PATH");
  command.add_option("--port", o.port, "Port to listen on; 0 takes a free one, which stdout tells");
  command.add_option("--api-key-file", o.key_file, "Who asks must have one of these keys, one a line (chmod 600)")
      ->type_name("FILE");
  command.add_flag("--no-key", o.without_key, "Let other machines in without a key");
  command
      .add_option(
          "--allowed-host", o.allowed_hosts,
          "Name that requests may give the server (may be given again, or several with commas; default: any with "
          "keys, else addresses and the machine's own)")
      ->delimiter(',')
      ->transform([](const std::string& one) { return CLI::detail::trim_copy(one); })
      ->allow_extra_args(false);
}

serve::Access access_of(const ListenOptions& o, std::string_view command) {
  if (o.host == "unix:") throw UsageError("{}: --host unix: lacks the path of a socket", command);
  serve::Access access;
  if (!o.key_file.empty()) access.keys = serve::ApiKeys::read(o.key_file);
  if (!access.keys.required() && !serve::is_loopback(o.host) && !o.without_key) {
    throw UsageError("{}: --host {} lets other machines in: give --api-key-file FILE, or --no-key if that is meant",
                     command, printable(o.host));
  }
  access.hosts = serve::host_names(o.host, access.keys.required(), o.allowed_hosts);
  return access;
}

std::string url_of(const std::string& host, uint16_t port) {
  if (host.starts_with("unix:")) return host;
  return fmt::format("http://{}:{}", host.find(':') == std::string::npos ? host : "[" + host + "]", port);
}

}  // namespace fathom::cli
