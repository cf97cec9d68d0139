// HTTP/1.1 on sockets: bytes -> requests, answers whole or piece by piece, and a limit on everything that a client can
// send or withhold. One thread serves all connections; what requests mean is told elsewhere (serve/service.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fathom::serve {

struct HttpLimits {
  int64_t connections = 1024;        // more are answered 503
  uint32_t header_bytes = 16 << 10;  // request line included
  int64_t headers = 100;
  uint64_t body_bytes = 8 << 20;
  // Of requests that are being read, half of it for one owner; more are answered 503. Two bodies always have room.
  uint64_t all_bodies_bytes = 256 << 20;
  // Seconds for: all of a header, from its first byte; all of a body; the next request; the client to take what is
  // written.
  double header_s = 10, body_s = 30, idle_s = 60, write_s = 30;
  double quiet_s = 15;  // a streamed answer that says nothing for so long says that it lives
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

std::string lower_case(std::string_view text);  // of ASCII

struct HttpRequest {
  std::string method, path, query;  // the target, cut at '?'
  HttpHeaders headers;              // names in lower case, without what came behind a chunked body
  std::string body;
  bool keep_alive = true;
  bool takes_chunks = true;  // HTTP/1.1

  const std::string* header(std::string_view lower_case_name) const;  // the first; null: none
};

// What is answered to bytes that are no request, or one too large. The connection ends with it.
struct HttpRefusal : std::runtime_error {
  HttpRefusal(int http_status, const std::string& message) : std::runtime_error(message), status(http_status) {}
  int status;
};

// The bytes of a connection -> its requests, one after the other.
class RequestReader {
 public:
  explicit RequestReader(const HttpLimits& limits);
  ~RequestReader();

  // How many of the bytes it took; those left come again with more behind them, or begin the next request. Throws
  // HttpRefusal; nothing may be put behind one.
  size_t put(std::string_view bytes);
  bool has_header() const { return has_header_; }
  const HttpRequest& header() const { return request_; }  // has_header(): the request without its body
  size_t body_bytes() const;                              // so far
  bool done() const { return done_; }
  // Of a request whose body has not come: the client waits to be told to go on.
  bool expects_continue() const { return expects_continue_; }
  HttpRequest take();  // done(): the request; the next one begins
  // has_header(): the request without its body, of which nothing may be put any more.
  HttpRequest take_header();

 private:
  struct Parser;
  void read_header();
  const HttpLimits& limits_;
  std::unique_ptr<Parser> parser_;
  HttpRequest request_;
  std::string head_;  // of it so far, as it came
  bool has_header_ = false, done_ = false, expects_continue_ = false;
};

class HttpConnection;
struct HttpState;

// Answers one request, once: whole, or begin(), write()s and end(). On the server's thread alone. Once the client is
// gone nothing has any effect. A reply that is dropped unanswered leaves its client to wait.
class HttpReply {
 public:
  HttpReply(std::shared_ptr<HttpConnection> connection, uint64_t request);

  // Whether an answer of so many bytes may be sent whole: not while clients that do not take theirs fill the memory for
  // those. True for what is short, and where the client is gone.
  bool has_room(size_t bytes) const;
  void send(int status, std::string_view content_type, std::string_view body, const HttpHeaders& more = {});
  // `alive` is written where nothing else is for quiet_s.
  void begin(int status, std::string_view content_type, std::string alive, const HttpHeaders& more = {});
  void write(std::string_view text);
  void end();
  // Breaks the connection off: a streamed answer that cannot be ended.
  void abort();
  // Called once, should the client go before the end.
  void on_gone(std::function<void()> gone);

 private:
  HttpConnection* current() const;  // null where the connection is closed or has gone on
  std::shared_ptr<HttpConnection> connection_;
  uint64_t request_;
};

using HttpHandler = std::function<void(HttpRequest request, HttpReply reply)>;

// What is made of a request once its header is there, before any of its body is kept or asked for.
struct HttpVerdict {
  bool wants_body = false;  // no: the handler gets it without, and the connection ends with the answer
  std::string owner{};      // whose bodies are counted together; empty: those of the client's machine
};
using HttpJudge = std::function<HttpVerdict(const HttpRequest& request)>;

// How a refusal reads: JSON, and headers beside it. path: of the request, empty where that is not known.
struct HttpRefusalText {
  std::string json;
  HttpHeaders headers;
};
using HttpRefuser = std::function<HttpRefusalText(const HttpRefusal& refusal, std::string_view path)>;

// What becomes of requests, on the server's thread.
struct HttpAnswering {
  HttpJudge judge;
  HttpRefuser refuse;
  HttpHandler handle;
};

class HttpServer {
 public:
  // host: an address, a name, or unix:PATH. port 0: any free one. Error where it cannot listen there.
  HttpServer(const std::string& host, uint16_t port, const HttpLimits& limits, HttpAnswering answering);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  uint16_t port() const;  // 0: none
  // Serves on the calling thread until stop().
  void run();
  void stop();
  // `work` runs on the server's thread, soon; from any thread, in order. Dropped behind stop().
  void post(std::function<void()> work);
  // Again and again on the server's thread.
  void every(double seconds, std::function<void()> work);
  // No more connections and requests: those that wait for a request are closed, the others with their answer.
  void drain();
  int64_t n_connections() const;

 private:
  std::unique_ptr<HttpState> state_;
};

}  // namespace fathom::serve
