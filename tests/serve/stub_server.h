// A server that does to each connection what a test says, on threads of its own.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace fathom::test {

// What a script does with its connection.
class StubConnection {
 public:
  explicit StubConnection(int fd) : fd_(fd) {}

  // The next request with its body; empty when the client has gone.
  std::string request() {
    for (;;) {
      const size_t head = held_.find("\r\n\r\n");
      if (head != std::string::npos) {
        const size_t at = held_.find("Content-Length: ");
        const size_t body = at < head ? std::stoul(held_.substr(at + 16)) : 0;
        if (held_.size() >= head + 4 + body) {
          const std::string whole = held_.substr(0, head + 4 + body);
          held_.erase(0, whole.size());
          return whole;
        }
      }
      char bytes[4096];
      const ssize_t n = recv(fd_, bytes, sizeof bytes, 0);
      if (n <= 0) return "";
      held_.append(bytes, static_cast<size_t>(n));
    }
  }
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  void begin_stream() {
    send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
  }
  bool send_chunk(std::string_view bytes) {
    char size[32];
    std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
    return send(size + std::string(bytes) + "\r\n");
  }
  bool send_event(std::string_view data) { return send_chunk("data: " + std::string(data) + "\n\n"); }
  bool send_text(std::string_view text) {
    return send_event(R"({"choices":[{"delta":{"content":")" + std::string(text) + "\"}}]}");
  }
  void end_stream() {
    send_event("[DONE]");
    send("0\r\n\r\n");
  }
  void reset() {  // instead of an orderly end
    const linger now{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }

 private:
  int fd_;
  std::string held_;
};

inline void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

class StubServer {
 public:
  using Script = std::function<void(StubConnection& connection, int number)>;  // number: connections before this one

  explicit StubServer(Script script, bool ipv6 = false) : script_(std::move(script)) {
    fd_ = socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    sockaddr_in6 six{.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    sockaddr_in four{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    sockaddr* address = ipv6 ? reinterpret_cast<sockaddr*>(&six) : reinterpret_cast<sockaddr*>(&four);
    socklen_t size = ipv6 ? sizeof six : sizeof four;
    there_is_ = fd_ >= 0 && bind(fd_, address, size) == 0 && listen(fd_, 1024) == 0;
    if (!there_is_) return;
    getsockname(fd_, address, &size);
    url_ = (ipv6 ? "http://[::1]:" : "http://127.0.0.1:") + std::to_string(ntohs(ipv6 ? six.sin6_port : four.sin_port));
    accepting_ = std::thread([this] { accept_all(); });
  }
  ~StubServer() {
    stops_ = true;
    if (accepting_.joinable()) accepting_.join();
    {
      const std::lock_guard lock(mutex_);
      for (const int fd : open_) shutdown(fd, SHUT_RDWR);
    }
    for (std::thread& thread : serving_) thread.join();
    if (fd_ >= 0) close(fd_);
  }
  StubServer(const StubServer&) = delete;
  StubServer& operator=(const StubServer&) = delete;

  bool there_is() const { return there_is_; }  // not: no such address here
  const std::string& url() const { return url_; }
  int n_connections() const { return n_connections_; }

 private:
  void accept_all() {
    while (!stops_) {
      pollfd waiting{.fd = fd_, .events = POLLIN};
      if (poll(&waiting, 1, 20) != 1) continue;
      const int fd = accept(fd_, nullptr, nullptr);
      if (fd < 0) continue;
      const int yes = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      {
        const std::lock_guard lock(mutex_);
        open_.push_back(fd);
      }
      serving_.emplace_back([this, fd, number = n_connections_++] {
        StubConnection connection(fd);
        script_(connection, number);
        const std::lock_guard lock(mutex_);
        std::erase(open_, fd);
        close(fd);
      });
    }
  }

  Script script_;
  std::string url_;
  int fd_ = -1;
  bool there_is_ = false;
  std::atomic<bool> stops_{false};
  std::atomic<int> n_connections_{0};
  std::mutex mutex_;
  std::vector<int> open_;
  std::thread accepting_;
  std::vector<std::thread> serving_;
};

}  // namespace fathom::test
