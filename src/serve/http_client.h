// HTTP/1.1 as a client speaks it: requests to one server, any number at a time, on the calling thread; a limit on
// everything that the server can send or withhold.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

#include "serve/http.h"

namespace fathom::serve {

struct HttpUrl {
  std::string host;  // an address, IPv6 without brackets, or a name
  uint16_t port = 80;
  std::string path;       // without '/' at its end
  std::string authority;  // what the Host header says
};
// UsageError for what is no http:// URL; https names what is needed for it.
HttpUrl parse_http_url(const std::string& url);

struct HttpClientLimits {
  uint32_t header_bytes = 64 << 10;  // of an answer, and of each chunk's own
  uint64_t body_bytes = 64 << 20;
  double timeout_s = 600;  // for all of a request
  bool keep_alive = true;  // connections serve one request after the other
};

enum class HttpEnd {
  complete,
  connect,    // no connection
  timeout,    // more than timeout_s
  cut,        // the connection ended before the answer did
  malformed,  // what came is no HTTP
  too_large,  // more than the limits
};
// "connect", "timeout", ...
const char* name_of(HttpEnd end);

struct HttpFailure : std::runtime_error {
  HttpFailure(HttpEnd how_it_ended, const std::string& message) : std::runtime_error(message), end(how_it_ended) {}
  HttpEnd end;
};

// The bytes that come for one request -> its answer; interim ones (100 Continue) are passed over.
class ReplyReader {
 public:
  explicit ReplyReader(const HttpClientLimits& limits);
  ~ReplyReader();

  // How many of the bytes it took; those left come again with more behind them, or are behind the answer. Throws
  // HttpFailure (malformed, too_large); nothing may be put behind one.
  size_t put(std::string_view bytes);
  // The server has closed: whether the answer ends with that, which is its end where it has no length.
  bool put_end();
  bool has_header() const { return has_header_; }
  int status() const { return status_; }
  const std::string& content_type() const { return content_type_; }
  // Seconds that the server asks to wait for (Retry-After, a number or a date); -1: it does not say.
  double retry_after_s() const { return retry_after_s_; }
  // What has come of the body since the last call.
  std::string take_body();
  bool done() const { return done_; }
  bool keep_alive() const { return keep_alive_; }  // done(): the connection may serve another request

 private:
  struct Parser;
  void begin();
  void look();

  const HttpClientLimits& limits_;
  std::unique_ptr<Parser> parser_;
  std::string content_type_;
  size_t header_bytes_ = 0;  // so far
  int status_ = 0;
  double retry_after_s_ = -1;
  bool has_header_ = false, done_ = false, keep_alive_ = false;
};

// What to do with a piece of an answer.
enum class HttpNext {
  more,
  last,  // nothing more is needed, but for the end that lets the connection be used again
  stop,  // the connection is closed at once
};

// Told in this order; `end` once, whatever happens, unless the client is stopped before. now_s: of monotonic_s(), when
// the bytes came.
struct HttpListener {
  std::function<void(int status, const std::string& content_type)> header;
  std::function<HttpNext(const std::string& piece, double now_s)> body;
  std::function<void(HttpEnd end, const std::string& message)> end;  // the message is empty where it is complete
  std::function<void(double seconds)> retry_after{};                 // where the header says so; may be empty
};

// All bytes of a request. A body is JSON.
std::string request_text(const HttpUrl& url, std::string_view method, std::string_view path, const HttpHeaders& more,
                         std::string_view body, bool keep_alive);

struct HttpClientState;

class HttpClient {
 public:
  // Error where the host has no address.
  HttpClient(const HttpUrl& url, const HttpClientLimits& limits);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // On a connection that is free, or a new one. A request for which a kept connection turns out to be closed is sent
  // again on a new one.
  void send(std::string request, HttpListener listener);
  // At a time of monotonic_s(), or soon where that is past.
  void at(double when_s, std::function<void()> work);
  // Again and again.
  void every(double seconds, std::function<void()> work);
  // Sends and listens on the calling thread until stop(). What a listener throws comes out of it.
  void run();
  void stop();

 private:
  std::unique_ptr<HttpClientState> state_;
};

struct HttpAnswer {
  int status = 0;
  std::string body;
};
// One request, and its answer whole; nothing where `interrupted` has said so. Error where no answer comes.
std::optional<HttpAnswer> ask(const HttpUrl& url, std::string request, const HttpClientLimits& limits,
                              const std::function<bool()>& interrupted);

}  // namespace fathom::serve
