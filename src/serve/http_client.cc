#include "serve/http_client.h"

#include <algorithm>
#include <array>
#include <boost/asio.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <ctime>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/terminal.h"

namespace fathom::serve {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr double kTailS = 1;             // for the end of an answer of which nothing more is needed
constexpr size_t kReadBytes = 16 << 10;  // at a time

// A body whose pieces are taken as they come. (Beast's own would reserve what a Content-Length says.)
struct PieceBody {
  using value_type = std::string;
  class reader {
   public:
    template <bool isRequest, class Fields>
    reader(http::header<isRequest, Fields>&, value_type& body) : body_(body) {}
    void init(const boost::optional<uint64_t>&, error_code& error) { error = {}; }
    template <class Buffers>
    size_t put(const Buffers& buffers, error_code& error) {
      error = {};
      const size_t before = body_.size();
      for (auto it = asio::buffer_sequence_begin(buffers); it != asio::buffer_sequence_end(buffers); ++it) {
        const asio::const_buffer buffer(*it);
        body_.append(static_cast<const char*>(buffer.data()), buffer.size());
      }
      return body_.size() - before;
    }
    void finish(error_code& error) { error = {}; }

   private:
    value_type& body_;
  };
};

// What Retry-After says: "120", or "Fri, 31 Dec 1999 23:59:59 GMT"; -1 for anything else.
double seconds_until(const std::string& text) {
  if (!text.empty() && text.size() <= 9 && text.find_first_not_of("0123456789") == std::string::npos) {
    return std::stod(text);
  }
  std::tm date{};
  const char* const end = strptime(text.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &date);
  if (text.empty() || end == nullptr || *end != 0) return -1;
  return std::max(0.0, std::difftime(timegm(&date), std::time(nullptr)));
}

asio::steady_timer::duration duration_of(double seconds) {
  return std::chrono::duration_cast<asio::steady_timer::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

const char* name_of(HttpEnd end) {
  switch (end) {
    case HttpEnd::complete:
      return "complete";
    case HttpEnd::connect:
      return "connect";
    case HttpEnd::timeout:
      return "timeout";
    case HttpEnd::cut:
      return "cut";
    case HttpEnd::malformed:
      return "malformed";
    case HttpEnd::too_large:
      return "too_large";
  }
  return "";
}

HttpUrl parse_http_url(const std::string& url) {
  const auto fail = [&](std::string_view why) -> HttpUrl {
    throw UsageError("{}: {}; a server is named http://HOST:PORT or http://HOST:PORT/BASE", printable(url), why);
  };
  constexpr std::string_view kScheme = "http://";
  std::string_view rest = url;
  if (rest.starts_with("https://")) {
    throw UsageError("{}: https is not spoken here; put a proxy or tunnel that ends TLS in between (ssh -L, stunnel)",
                     printable(url));
  }
  if (!rest.starts_with(kScheme)) return fail("this is no http:// URL");
  rest.remove_prefix(kScheme.size());
  const bool plain = std::all_of(rest.begin(), rest.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (!plain || rest.find_first_of("?#@\\\"<>") != std::string_view::npos) {
    return fail("there must be no user, query, fragment, space or letter that is not ASCII in it");
  }
  HttpUrl parsed;
  const size_t slash = std::min(rest.find('/'), rest.size());
  parsed.authority = rest.substr(0, slash);
  parsed.path = rest.substr(slash);
  while (parsed.path.ends_with('/')) parsed.path.pop_back();
  std::string_view host = parsed.authority, port;
  if (host.starts_with('[')) {
    const size_t end = host.find(']');
    if (end == std::string_view::npos) return fail("the address has no ]");
    port = host.substr(end + 1);
    host = host.substr(1, end - 1);
  } else if (const size_t colon = host.find(':'); colon != std::string_view::npos) {
    port = host.substr(colon);
    host = host.substr(0, colon);
    if (port.find(':', 1) != std::string_view::npos) return fail("an IPv6 address stands in [ ]");
  }
  if (host.empty()) return fail("there is no host in it");
  parsed.host = host;
  if (!port.empty()) {
    const std::string_view digits = port.substr(1);
    const bool is_number =
        !digits.empty() && digits.size() <= 5 && digits.find_first_not_of("0123456789") == std::string_view::npos;
    const int number = is_number && port[0] == ':' ? std::stoi(std::string(digits)) : 0;
    if (number < 1 || number > 65535) return fail("the port must be 1 to 65535");
    parsed.port = static_cast<uint16_t>(number);
  }
  return parsed;
}

std::string request_text(const HttpUrl& url, std::string_view method, std::string_view path, const HttpHeaders& more,
                         std::string_view body, bool keep_alive) {
  std::string text = fmt::format("{} {}{} HTTP/1.1\r\nHost: {}\r\nUser-Agent: fathom\r\nConnection: {}\r\n", method,
                                 url.path, path, url.authority, keep_alive ? "keep-alive" : "close");
  for (const auto& [name, value] : more) text += fmt::format("{}: {}\r\n", name, value);
  if (!body.empty()) text += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", body.size());
  text += "\r\n";
  text += body;
  return text;
}

// ---- Bytes to answers

struct ReplyReader::Parser : http::response_parser<PieceBody> {};

ReplyReader::ReplyReader(const HttpClientLimits& limits) : limits_(limits) { begin(); }
ReplyReader::~ReplyReader() = default;

void ReplyReader::begin() {
  parser_ = std::make_unique<Parser>();
  parser_->header_limit(limits_.header_bytes);
  parser_->body_limit(limits_.body_bytes);
  header_bytes_ = 0;
}

size_t ReplyReader::put(std::string_view bytes) {
  size_t taken = 0;
  while (taken < bytes.size() && !done_) {
    error_code error;
    size_t n = 0;
    try {
      n = parser_->put(asio::buffer(bytes.data() + taken, bytes.size() - taken), error);
    } catch (const std::logic_error&) {  // what Beast asserts
      throw HttpFailure(HttpEnd::malformed, "the answer is no HTTP: its parts do not fit");
    }
    taken += n;
    if (!has_header_) header_bytes_ += n;  // Beast counts only what it has not taken yet
    if (error == http::error::header_limit || header_bytes_ > limits_.header_bytes)
      throw HttpFailure(HttpEnd::too_large, fmt::format("a header of more than {} bytes", limits_.header_bytes));
    if (error == http::error::need_more) break;
    if (error == http::error::body_limit)
      throw HttpFailure(HttpEnd::too_large, fmt::format("an answer of more than {} bytes", limits_.body_bytes));
    if (error) throw HttpFailure(HttpEnd::malformed, fmt::format("the answer is no HTTP: {}", error.message()));
    look();
    if (n == 0) break;
  }
  // What is left is a part of a header, of a chunk's own line, or of fields behind the last chunk.
  const size_t left = done_ ? 0 : bytes.size() - taken;
  if (left + (has_header_ ? 0 : header_bytes_) > limits_.header_bytes)
    throw HttpFailure(HttpEnd::too_large, fmt::format("a line of more than {} bytes", limits_.header_bytes));
  return taken;
}

void ReplyReader::look() {
  if (!parser_->is_header_done()) return;
  const auto& message = parser_->get();
  const auto status = static_cast<int>(message.result_int());
  if (status == 101) throw HttpFailure(HttpEnd::malformed, "the server changes to another protocol unasked");
  if (status < 200) return begin();
  if (!has_header_) {
    has_header_ = true;
    status_ = status;
    content_type_ = std::string(message[http::field::content_type]);
    retry_after_s_ = seconds_until(std::string(message[http::field::retry_after]));
  }
  done_ = parser_->is_done();
  if (done_) keep_alive_ = parser_->keep_alive();
}

bool ReplyReader::put_end() {
  if (done_ || !has_header_) return done_;
  error_code error;
  try {
    parser_->put_eof(error);
  } catch (const std::logic_error&) {
    return false;
  }
  done_ = !error && parser_->is_done();
  return done_;
}

std::string ReplyReader::take_body() { return std::exchange(parser_->get().body(), {}); }

// ---- Connections

class ClientConnection;

struct HttpClientState {
  asio::io_context io{1};
  HttpClientLimits limits;
  std::vector<tcp::endpoint> endpoints;  // the one that took the last connection first
  std::vector<std::shared_ptr<ClientConnection>> idle;

  void repeat(double seconds, const std::shared_ptr<std::function<void()>>& work);
};

namespace {

struct Exchange {
  std::string request;
  HttpListener listener;
  double deadline_s = 0;
};

}  // namespace

// Serves one exchange after the other. Handlers of an exchange that has ended know it by its number.
class ClientConnection : public std::enable_shared_from_this<ClientConnection> {
 public:
  explicit ClientConnection(HttpClientState& client) : client_(client), socket_(client.io), timer_(client.io) {}

  void begin(Exchange exchange) {
    exchange_ = std::move(exchange);
    reader_.emplace(client_.limits);
    held_.clear();
    wrote_ = heard_ = told_header_ = enough_ = false;
    wait_until(exchange_.deadline_s);
    if (used_) {
      write();
      read();
    } else {
      connect();
    }
  }

 private:
  void wait_until(double when_s) {
    timer_.expires_at(asio::steady_timer::time_point(duration_of(when_s)));
    timer_.async_wait([self = shared_from_this(), number = number_](error_code error) {
      if (error || number != self->number_) return;
      self->end(HttpEnd::timeout, fmt::format("no {} within {:g} s", self->heard_ ? "whole answer" : "answer",
                                              self->client_.limits.timeout_s));
    });
  }

  void connect() {
    asio::async_connect(socket_, client_.endpoints,
                        [self = shared_from_this(), number = number_](error_code error, const tcp::endpoint& endpoint) {
                          if (number == self->number_) self->on_connected(error, endpoint);
                        });
  }
  void on_connected(error_code error, const tcp::endpoint& endpoint) {
    if (error) return end(HttpEnd::connect, "cannot connect: " + error.message());
    auto& endpoints = client_.endpoints;
    const auto at = std::find(endpoints.begin(), endpoints.end(), endpoint);
    if (at != endpoints.end()) std::rotate(endpoints.begin(), at, at + 1);
    error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    write();
    read();
  }

  // A server may answer before it has read everything: what became of writing, reading tells.
  void write() {
    asio::async_write(socket_, asio::buffer(exchange_.request),
                      [self = shared_from_this(), number = number_](error_code error, size_t) {
                        if (number == self->number_) self->wrote_ = !error;
                      });
  }
  void read() {
    socket_.async_read_some(asio::buffer(in_),
                            [self = shared_from_this(), number = number_](error_code error, size_t n) {
                              if (number == self->number_) self->on_read(error, n);
                            });
  }
  void on_read(error_code error, size_t n) {
    const double now_s = monotonic_s();
    if (error) return on_closed(error);
    heard_ = true;
    if (wrote_) exchange_.request = {};  // it will not be sent again
    try {
      if (held_.empty()) {
        const std::string_view bytes(in_.data(), n);
        held_ = bytes.substr(reader_->put(bytes));
      } else {
        held_.append(in_.data(), n);
        held_.erase(0, reader_->put(held_));
      }
    } catch (const HttpFailure& failure) {
      if (tell(now_s)) end(failure.end, failure.what());
      return;
    }
    if (!tell(now_s)) return;
    if (reader_->done()) return end(HttpEnd::complete, "");
    read();
  }
  void on_closed(error_code error) {
    if (reader_->put_end()) return end(HttpEnd::complete, "");
    if (used_ && !heard_) {  // the server had closed it while it was idle
      ++number_;
      const auto again = std::make_shared<ClientConnection>(client_);
      again->begin(std::move(exchange_));
      return close();
    }
    end(HttpEnd::cut, error == asio::error::eof ? "the server closed the connection before the end of its answer"
                                                : "the connection broke: " + error.message());
  }

  // False where that was the end.
  bool tell(double now_s) {
    if (!told_header_ && reader_->has_header()) {
      told_header_ = true;
      exchange_.listener.header(reader_->status(), reader_->content_type());
      if (exchange_.listener.retry_after && reader_->retry_after_s() >= 0) {
        exchange_.listener.retry_after(reader_->retry_after_s());
      }
    }
    const std::string piece = reader_->take_body();
    if (piece.empty() || enough_) return true;
    const HttpNext next = exchange_.listener.body(piece, now_s);
    if (next == HttpNext::more) return true;
    enough_ = true;
    if (next == HttpNext::last) wait_until(now_s + kTailS);
    if (next == HttpNext::stop) end(HttpEnd::cut, "");
    return next != HttpNext::stop;
  }

  void end(HttpEnd how, const std::string& message) {
    ++number_;
    timer_.cancel();
    const bool keep = client_.limits.keep_alive && how == HttpEnd::complete && wrote_ && held_.empty() &&
                      reader_->done() && reader_->keep_alive();
    const Exchange ended = std::exchange(exchange_, {});
    if (keep) {
      used_ = true;
      client_.idle.push_back(shared_from_this());
    } else {
      close();
    }
    if (enough_) {
      ended.listener.end(HttpEnd::complete, "");
    } else {
      ended.listener.end(how, message);
    }
  }
  void close() {
    error_code ignored;
    socket_.close(ignored);
    timer_.cancel();
  }

  HttpClientState& client_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  std::array<char, kReadBytes> in_;
  std::string held_;  // read, and not yet taken
  Exchange exchange_;
  std::optional<ReplyReader> reader_;
  uint64_t number_ = 0;
  bool used_ = false;  // by an exchange before
  bool wrote_ = false, heard_ = false, told_header_ = false, enough_ = false;
};

// ---- The client

void HttpClientState::repeat(double seconds, const std::shared_ptr<std::function<void()>>& work) {
  const auto timer = std::make_shared<asio::steady_timer>(io, duration_of(seconds));
  timer->async_wait([this, seconds, work, timer](error_code error) {
    if (error) return;
    (*work)();
    repeat(seconds, work);
  });
}

HttpClient::HttpClient(const HttpUrl& url, const HttpClientLimits& limits)
    : state_(std::make_unique<HttpClientState>()) {
  state_->limits = limits;
  error_code error;
  tcp::resolver resolver(state_->io);
  for (const auto& entry : resolver.resolve(url.host, std::to_string(url.port), error)) {
    state_->endpoints.push_back(entry.endpoint());
  }
  if (error || state_->endpoints.empty()) {
    throw Error("{}: the host has no address: {}", printable(url.authority), error.message());
  }
}
HttpClient::~HttpClient() = default;

void HttpClient::send(std::string request, HttpListener listener) {
  HttpClientState& s = *state_;
  Exchange exchange{std::move(request), std::move(listener), monotonic_s() + s.limits.timeout_s};
  if (s.idle.empty()) {
    std::make_shared<ClientConnection>(s)->begin(std::move(exchange));
  } else {
    const std::shared_ptr<ClientConnection> connection = std::move(s.idle.back());
    s.idle.pop_back();
    connection->begin(std::move(exchange));
  }
}

void HttpClient::at(double when_s, std::function<void()> work) {
  const auto timer = std::make_shared<asio::steady_timer>(
      state_->io, asio::steady_timer::time_point(duration_of(std::max(when_s, 0.0))));
  timer->async_wait([work = std::move(work), timer](error_code error) {
    if (!error) work();
  });
}
void HttpClient::every(double seconds, std::function<void()> work) {
  state_->repeat(seconds, std::make_shared<std::function<void()>>(std::move(work)));
}
void HttpClient::run() {
  state_->io.restart();
  state_->io.run();
}
void HttpClient::stop() { state_->io.stop(); }

std::optional<HttpAnswer> ask(const HttpUrl& url, std::string request, const HttpClientLimits& limits,
                              const std::function<bool()>& interrupted) {
  HttpClient client(url, limits);
  HttpAnswer answer;
  std::optional<HttpEnd> ended;
  std::string why;
  client.every(0.05, [&] {
    if (interrupted()) client.stop();
  });
  client.send(std::move(request), {.header = [&](int status, const std::string&) { answer.status = status; },
                                   .body =
                                       [&](const std::string& piece, double) {
                                         answer.body += piece;
                                         return HttpNext::more;
                                       },
                                   .end =
                                       [&](HttpEnd end, const std::string& message) {
                                         ended = end;
                                         why = message;
                                         client.stop();
                                       }});
  client.run();
  if (!ended) return std::nullopt;
  if (*ended != HttpEnd::complete) throw Error("http://{}: {}", printable(url.authority), why);
  return answer;
}

}  // namespace fathom::serve
