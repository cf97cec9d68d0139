#include "serve/hosts.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace fathom::serve {
namespace {

TEST(HostNames, OnThisMachineAreItsOwn) {
  const HostNames hosts = host_names("127.0.0.1", false, {"Proxy.Example"});
  for (const char* host : {"localhost", "LocalHost:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "proxy.example:443"})
    EXPECT_TRUE(hosts.include(host)) << host;
  for (const char* host : {"evil.example", "localhost.evil.example", "localhost@evil", "192.168.0.7", "",
                           "127.0.0.1.evil.example", "[::2]"})
    EXPECT_FALSE(hosts.include(host)) << host;
}

TEST(HostNames, WithoutKeysOtherMachinesMayUseAddressesAndItsName) {
  const HostNames hosts = host_names("0.0.0.0", false, {});
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  for (const char* host : {"192.168.0.7:8080", "[fe80::1]:8080", "localhost", static_cast<const char*>(name)})
    EXPECT_TRUE(hosts.include(host)) << host;
  for (const char* host : {"evil.example", "1.2.3.4.evil.example", "0x7f000001", "[evil]", "1.2.3.4:x", "evil:1:2"})
    EXPECT_FALSE(hosts.include(host)) << host;
}

TEST(HostNames, KeysGuardAnyNameUnlessSomeAreGiven) {
  EXPECT_TRUE(host_names("0.0.0.0", true, {}).include("any.example"));
  EXPECT_FALSE(host_names("0.0.0.0", true, {"mine.example"}).include("any.example"));
  EXPECT_FALSE(host_names("127.0.0.1", true, {}).include("any.example"));
  EXPECT_TRUE(host_names("unix:/run/s", false, {}).include("any.example"));
}

TEST(HostNames, AnOriginIsOwnWhereItIsTheHost) {
  EXPECT_TRUE(is_own_origin("http://localhost:8080", "Localhost:8080"));
  EXPECT_TRUE(is_own_origin("https://a.example", "a.example"));
  for (const char* origin : {"null", "", "http://", "ftp://a.example", "http://a.example:1", "http://b.example"})
    EXPECT_FALSE(is_own_origin(origin, "a.example")) << origin;
}

}  // namespace
}  // namespace fathom::serve
