#include "serve/http.h"

#include <netinet/in.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio.hpp>
#include <boost/beast/http.hpp>
#include <deque>
#include <limits>
#include <optional>
#include <set>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "base/terminal.h"

// Should bytes from outside make false what Beast asserts, the message is refused, in every build: the room is compiled
// with BOOST_ENABLE_ASSERT_HANDLER.
namespace boost {

void assertion_failed(const char* expression, const char*, const char*, long) {
  // Of a body's last chunk that is its first there may be four bytes: this one asks for too much, and needs three.
  if (std::string_view(expression) != "n >= 5") throw std::logic_error(expression);
}
void assertion_failed_msg(const char* expression, const char*, const char*, const char*, long) {
  throw std::logic_error(expression);
}

}  // namespace boost

namespace fathom::serve {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using Socket = asio::generic::stream_protocol::socket;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kSweepS = 0.25;                     // between two looks for what takes too long
constexpr double kLingerS = 2;                       // for a client to stop sending what nobody reads
constexpr size_t kLingerBytes = size_t{16} << 20;    // of that
constexpr size_t kMostAhead = size_t{64} << 10;      // of later requests, kept while one is answered
constexpr size_t kMostUnwritten = size_t{16} << 20;  // of a streamed answer
// Of all connections together; beyond it those are closed that have more than their part.
constexpr size_t kMostAllUnwritten = size_t{256} << 20;
constexpr size_t kMostWhole = kMostAllUnwritten / 2;  // of that by answers that are sent whole and longer than
constexpr size_t kShortAnswer = size_t{1} << 20;

std::string head_of(int status, std::string_view content_type, const HttpHeaders& more, bool keep_alive) {
  std::string head =
      fmt::format("HTTP/1.1 {} {}\r\n", status,
                  std::string(http::obsolete_reason(http::int_to_status(static_cast<unsigned>(status)))));
  if (!content_type.empty()) head += fmt::format("Content-Type: {}\r\n", content_type);
  for (const auto& [name, value] : more) head += fmt::format("{}: {}\r\n", name, value);
  head += keep_alive ? "Connection: keep-alive\r\n" : "Connection: close\r\n";
  return head;
}

// Whether a request line ends in a version, and as a line does.
bool names_version(std::string_view bytes) {
  constexpr std::string_view kVersion = " HTTP/";
  const size_t at = bytes.find(kVersion);
  if (at == std::string_view::npos) return false;
  const std::string_view behind = bytes.substr(at + kVersion.size());
  return behind.size() >= 5 && behind.substr(3, 2) == "\r\n";
}

// Of a target such as http://localhost:8080/health, as it is sent to proxies: what stands in front of the path, which
// is left.
std::optional<std::string_view> take_authority(std::string_view& target) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (lower_case(target.substr(0, scheme.size())) != scheme) continue;
    const std::string_view behind = target.substr(scheme.size());
    const std::string_view authority = behind.substr(0, behind.find_first_of("/?"));
    if (authority.empty() || authority.find('@') != std::string_view::npos)
      throw HttpRefusal(400, "the request's target names no host");
    target = behind.substr(authority.size());
    return authority;
  }
  return std::nullopt;
}

// What names the machine at the other end: its address, of IPv6 the network (a machine has all addresses of one). Empty
// for who comes through the file system.
std::string machine_of(const Socket& socket) {
  constexpr size_t kNetworkBytes = 8;
  error_code gone;
  const Socket::endpoint_type peer = socket.remote_endpoint(gone);
  if (gone) return {};
  if (peer.data()->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(peer.data());
    return {reinterpret_cast<const char*>(&v4->sin_addr), sizeof v4->sin_addr};
  }
  if (peer.data()->sa_family == AF_INET6) {
    const auto* v6 = reinterpret_cast<const sockaddr_in6*>(peer.data());
    const auto* address = reinterpret_cast<const char*>(&v6->sin6_addr);
    if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) return {address + sizeof(in6_addr) - sizeof(in_addr), sizeof(in_addr)};
    return {address, kNetworkBytes};
  }
  return {};
}

}  // namespace

std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

const std::string* HttpRequest::header(std::string_view lower_case_name) const {
  for (const auto& [name, value] : headers) {
    if (name == lower_case_name) return &value;
  }
  return nullptr;
}

// ---- Bytes to requests

struct RequestReader::Parser : http::request_parser<http::string_body> {};

RequestReader::RequestReader(const HttpLimits& limits) : limits_(limits) {}
RequestReader::~RequestReader() = default;

size_t RequestReader::put(std::string_view bytes) {
  size_t taken = 0;
  if (parser_ == nullptr) {
    while (bytes.substr(taken).starts_with("\r\n")) taken += 2;  // RFC 9112, 2.2
    if (taken == bytes.size() || bytes.substr(taken) == "\r") return taken;
    parser_ = std::make_unique<Parser>();
    parser_->header_limit(limits_.header_bytes);
    parser_->body_limit(boost::none);  // until it is known who is to be told
    head_.clear();
  }
  const auto too_long = [&](int status, const char* what) {
    return HttpRefusal(status, fmt::format("{} has more than {} bytes", what, limits_.header_bytes));
  };
  while (taken < bytes.size() && !done_) {
    error_code error;
    // Header and body in turn, so that a header is judged before anything of its body is kept.
    size_t n = 0;
    try {
      n = parser_->put(asio::buffer(bytes.data() + taken, bytes.size() - taken), error);
    } catch (const std::logic_error&) {
      throw HttpRefusal(400, "this is no HTTP request: its parts do not fit");
    }
    if (!has_header_) head_ += bytes.substr(taken, n);
    taken += n;
    // Beast takes lines that are whole and counts only what is left, so that a header in lines would never be too long.
    if (error == http::error::header_limit || head_.size() > limits_.header_bytes) throw too_long(431, "the header");
    if (error == http::error::need_more) break;
    if (error == http::error::body_limit)
      throw HttpRefusal(413, fmt::format("the body has more than {} bytes", limits_.body_bytes));
    if (error == http::error::bad_version && names_version(bytes))
      throw HttpRefusal(505, "only HTTP/1.1 is spoken here");
    if (error) throw HttpRefusal(400, fmt::format("this is no HTTP request: {}", error.message()));
    if (!has_header_ && parser_->is_header_done()) {
      // A line that goes on in the next one is read as one by some and as two by others.
      if (head_.find("\r\n ") != std::string::npos || head_.find("\r\n\t") != std::string::npos)
        throw HttpRefusal(400, "a header's line begins with a space");
      read_header();
      parser_->body_limit(limits_.body_bytes);
    }
    done_ = parser_->is_done();
    if (n == 0) break;
  }
  // What Beast leaves for later is a part of the header, of a chunk's own line, or of fields behind the last chunk.
  const size_t left = done_ ? 0 : bytes.size() - taken;
  if (!has_header_ && head_.size() + left > limits_.header_bytes) throw too_long(431, "the header");
  if (left > limits_.header_bytes) throw too_long(400, "a line between chunks");
  return taken;
}

void RequestReader::read_header() {
  const auto& message = parser_->get();
  has_header_ = true;
  request_ = {};
  request_.method = std::string(message.method_string());
  if (message.version() != 10 && message.version() != 11) throw HttpRefusal(505, "only HTTP/1.1 is spoken here");
  request_.takes_chunks = message.version() == 11;
  request_.keep_alive = message.keep_alive();
  std::string_view target(message.target().data(), message.target().size());
  const std::optional<std::string_view> authority = take_authority(target);
  if (!authority && !target.starts_with('/') && !(target == "*" && request_.method == "OPTIONS"))
    throw HttpRefusal(400, "the request's target must be a path");
  const size_t query = target.find('?');
  request_.path = target.substr(0, query);
  if (request_.path.empty()) request_.path = "/";  // of http://localhost
  if (query != std::string_view::npos) request_.query = target.substr(query + 1);

  int64_t n_host = 0, n_length = 0, n_coding = 0;
  for (const auto& field : message) {
    if (std::ssize(request_.headers) == limits_.headers)
      throw HttpRefusal(431, fmt::format("there are more than {} headers", limits_.headers));
    request_.headers.emplace_back(lower_case({field.name_string().data(), field.name_string().size()}),
                                  std::string(field.value()));
    const auto& [name, value] = request_.headers.back();
    n_host += name == "host";
    if (name == "content-length") {
      ++n_length;
      if (value.find_first_not_of("0123456789") != std::string::npos)
        throw HttpRefusal(400, "Content-Length is no number");
    }
    if (name == "transfer-encoding") {
      ++n_coding;
      // Whoever reads another end of the body than the proxy in front of it takes a body for the next request.
      if (lower_case(value) != "chunked") throw HttpRefusal(501, "the only transfer coding here is chunked");
    }
    if (name == "content-encoding" && lower_case(value) != "identity")
      throw HttpRefusal(415, "bodies must not be compressed");
    if (name == "expect") {
      if (lower_case(value) != "100-continue") throw HttpRefusal(417, "the only expectation here is 100-continue");
      expects_continue_ = request_.takes_chunks;
    }
  }
  for (auto& [name, value] : request_.headers) {
    if (name == "host" && authority) value = *authority;  // RFC 9112, 3.2.2
  }
  if (n_length > 1 || n_coding > 1 || (n_length > 0 && n_coding > 0))
    throw HttpRefusal(400, "the body's length is told twice");
  if (n_coding > 0 && !request_.takes_chunks) throw HttpRefusal(400, "HTTP/1.0 has no transfer codings");
  if (n_host > 1 || (n_host == 0 && request_.takes_chunks)) throw HttpRefusal(400, "there must be one Host header");
  if (const auto length = parser_->content_length(); length && *length > limits_.body_bytes) {
    throw HttpRefusal(413, fmt::format("the body has more than {} bytes", limits_.body_bytes));
  }
}

size_t RequestReader::body_bytes() const { return parser_ != nullptr ? parser_->get().body().size() : 0; }

HttpRequest RequestReader::take() {
  FATHOM_CHECK(done_);
  request_.body = std::move(parser_->get().body());
  parser_.reset();
  has_header_ = done_ = expects_continue_ = false;
  return std::move(request_);
}

HttpRequest RequestReader::take_header() {
  FATHOM_CHECK(has_header_);
  parser_.reset();
  has_header_ = done_ = expects_continue_ = false;
  return std::move(request_);
}

// ---- Connections

namespace {

// The bytes of bodies that are being read: all of them, and of each owner.
class BodyRoom {
 public:
  void change(const std::string& owner, uint64_t before, uint64_t now) {
    all_ += now - before;
    if ((owners_[owner] += now - before) == 0) owners_.erase(owner);
  }
  bool is_short(const std::string& owner, uint64_t most) const {
    const auto of_owner = owners_.find(owner);
    return all_ > most || (of_owner != owners_.end() && of_owner->second > most / 2);
  }

 private:
  uint64_t all_ = 0;
  std::unordered_map<std::string, uint64_t> owners_;
};

}  // namespace

struct HttpState {
  asio::io_context io{1};
  HttpLimits limits;
  HttpAnswering answering;
  std::optional<asio::ip::tcp::acceptor> tcp;
  std::optional<asio::local::stream_protocol::acceptor> local;
  std::string local_path;
  std::unordered_set<std::shared_ptr<HttpConnection>> connections;
  bool draining = false;
  BodyRoom bodies;
  uint64_t unwritten_bytes = 0;  // of answers

  template <class Acceptor>
  void accept(Acceptor& acceptor);
  void take(Socket socket);
  void sweep();
  void repeat(double seconds, std::shared_ptr<std::function<void()>> work);
};

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(HttpState& server, Socket socket)
      : server_(server), socket_(std::move(socket)), reader_(server.limits), machine_(machine_of(socket_)) {}

  void start() {
    expect_request();
    read();
  }
  // No request but this one any more.
  void refuse(const HttpRefusal& refusal) {
    HttpRefusalText text =
        server_.answering.refuse(refusal, reader_.has_header() ? reader_.header().path : std::string());
    if (refusal.status == 503) text.headers.emplace_back("Retry-After", "5");
    held_.clear();
    count_body(0);
    lingers_ = true;
    put(head_of(refusal.status, "application/json", text.headers, false) +
        fmt::format("Content-Length: {}\r\n\r\n{}", text.json.size(), text.json));
  }
  void drain() {
    if (!answers_ && !writing_ && !reader_.has_header()) close();
  }
  void look(double now_s) {
    const auto self = shared_from_this();
    if (now_s > deadline_s_) {
      if (writing_ || lingers_ || answers_ || !request_begun_) return close();
      return refuse(HttpRefusal(408, "the request did not come in time"));
    }
    if (streams_ && !writing_ && now_s - written_s_ > server_.limits.quiet_s) write(alive_);
  }
  void close() {
    if (closed_) return;
    const auto self = shared_from_this();
    closed_ = true;
    error_code ignored;
    socket_.close(ignored);
    server_.connections.erase(self);
    count_body(0);
    server_.unwritten_bytes -= std::exchange(unwritten_counted_, 0);
    leave();
  }

  void close_silently() {
    gone_ = nullptr;
    close();
  }

  // ---- The answer
  uint64_t request() const { return request_; }
  bool open() const { return !closed_; }
  bool has_room(size_t bytes) const { return bytes <= kShortAnswer || server_.unwritten_bytes + bytes <= kMostWhole; }

  void send(int status, std::string_view content_type, std::string_view body, const HttpHeaders& more) {
    FATHOM_CHECK(answers_ && !begun_, "a request is answered once");
    std::string text = head_of(status, content_type, more, keeps_alive());
    if (status != 204 && status != 304) text += fmt::format("Content-Length: {}\r\n", body.size());
    text += "\r\n";
    if (!head_only_) text += body;
    begun_ = true;
    put(std::move(text));
    end_answer();
  }
  void begin(int status, std::string_view content_type, std::string alive, const HttpHeaders& more) {
    FATHOM_CHECK(answers_ && !begun_, "a request is answered once");
    if (!takes_chunks_) keep_alive_ = false;  // the connection's end is the answer's
    put(head_of(status, content_type, more, keeps_alive()) +
        (takes_chunks_ ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n"));
    begun_ = streams_ = true;
    alive_ = std::move(alive);
  }
  void write(std::string_view text) {
    if (text.empty() || head_only_) return;
    put(takes_chunks_ ? fmt::format("{:x}\r\n{}\r\n", text.size(), text) : std::string(text));
    const auto part = kMostAllUnwritten / static_cast<size_t>(server_.limits.connections);
    if (unwritten_.size() > kMostUnwritten || (server_.unwritten_bytes > kMostAllUnwritten && unwritten() > part))
      close();
  }
  void end() {
    if (takes_chunks_ && !head_only_) put("0\r\n\r\n");
    end_answer();
  }
  void on_gone(std::function<void()> gone) { gone_ = std::move(gone); }

 private:
  bool keeps_alive() const { return keep_alive_ && !server_.draining; }
  void expect_request() { deadline_s_ = monotonic_s() + server_.limits.idle_s; }

  void read() {
    // While something complete is written there is a limit to how long; nothing has to be noticed meanwhile.
    if (reading_ || closed_ || (writing_ && !answers_ && held_.size() > kMostAhead)) return;
    reading_ = true;
    socket_.async_read_some(asio::buffer(in_), [self = shared_from_this()](error_code error, size_t n) {
      self->reading_ = false;
      self->on_read(error, n);
    });
  }
  void on_read(error_code error, size_t n) {
    if (closed_) return;
    if (error) {
      // A client that has sent all it wants to say may still read an answer that is complete.
      if (lingers_ || answers_ || !writing_) close();
      keep_alive_ = false;
      return;
    }
    if (lingers_ || is_far_ahead_) {
      n_discarded_ += n;
      if (n_discarded_ > kLingerBytes) return close();
    } else {
      held_.append(in_.data(), n);
      if (!answers_ && !writing_) take_request();
      if (answers_ && held_.size() > kMostAhead) discard_ahead();
    }
    read();
  }
  // Reading goes on, since who goes is noticed by that alone; what was asked too far ahead is never answered.
  void discard_ahead() {
    is_far_ahead_ = true;
    keep_alive_ = false;
    held_ = {};
  }

  void take_request() {
    const HttpLimits& limits = server_.limits;
    std::optional<HttpRequest> without_body;
    try {
      const bool had_header = reader_.has_header();
      if (!request_begun_ && !held_.empty()) {
        request_begun_ = true;
        deadline_s_ = monotonic_s() + limits.header_s;
      }
      held_.erase(0, reader_.put(held_));
      if (!reader_.done()) {
        if (!reader_.has_header()) return;
        if (had_header || begin_body()) return take_body();
        without_body = reader_.take_header();
      }
    } catch (const HttpRefusal& refusal) {
      return refuse(refusal);
    } catch (const std::exception& error) {
      log("bug: {} while a request was read", printable(error.what()));
      return refuse(HttpRefusal(500, "the request cannot be read"));
    }
    if (without_body) return hand_over(std::move(*without_body), false);
    HttpRequest request = reader_.take();
    count_body(0);
    hand_over(std::move(request), true);
  }
  // Of a request whose header has come; false where nothing is to be made of its body.
  bool begin_body() {
    const HttpVerdict verdict = server_.answering.judge(reader_.header());
    if (!verdict.wants_body) return false;
    owner_ = verdict.owner.empty() ? machine_ : verdict.owner;
    deadline_s_ = monotonic_s() + server_.limits.body_s;
    if (reader_.expects_continue()) put("HTTP/1.1 100 Continue\r\n\r\n");
    return true;
  }
  void take_body() {
    count_body(reader_.body_bytes());
    if (server_.bodies.is_short(owner_, server_.limits.all_bodies_bytes))
      throw HttpRefusal(503, "too many large requests at a time");
  }
  // whole: with its body. Behind one without, nobody knows where the next request begins.
  void hand_over(HttpRequest request, bool whole) {
    if (!whole) held_.clear();
    deadline_s_ = kNever;
    answers_ = true;
    keep_alive_ = request.keep_alive && whole;
    takes_chunks_ = request.takes_chunks;
    head_only_ = request.method == "HEAD";
    server_.answering.handle(std::move(request), HttpReply(shared_from_this(), request_));
  }

  void count_body(size_t bytes) {
    server_.bodies.change(owner_, body_bytes_, bytes);
    body_bytes_ = bytes;
  }

  size_t unwritten() const { return unwritten_.size() + sending_.size() - n_sent_; }
  void count_unwritten() {
    server_.unwritten_bytes += unwritten() - unwritten_counted_;
    unwritten_counted_ = unwritten();
  }

  void put(std::string text) {
    if (closed_) return;
    unwritten_ += text;
    count_unwritten();
    if (!writing_) write_more();
  }
  void write_more() {
    writing_ = true;
    if (n_sent_ == sending_.size()) {
      sending_.swap(unwritten_);
      unwritten_.clear();
      n_sent_ = 0;
    }
    // Whoever takes something has time for the rest.
    written_s_ = monotonic_s();
    deadline_s_ = written_s_ + server_.limits.write_s;
    socket_.async_write_some(asio::buffer(sending_.data() + n_sent_, sending_.size() - n_sent_),
                             [self = shared_from_this()](error_code error, size_t n) { self->on_written(error, n); });
  }
  void on_written(error_code error, size_t n) {
    writing_ = false;
    n_sent_ += n;
    if (closed_) return;
    if (error) return close();
    count_unwritten();
    if (n_sent_ < sending_.size()) return write_more();
    deadline_s_ = kNever;
    if (!unwritten_.empty()) return write_more();
    if (lingers_) return linger();
    if (answers_) return;  // there is more to come
    if (!reader_.has_header()) {
      if (!keeps_alive()) return linger();
      expect_request();
      request_begun_ = false;
      if (!held_.empty()) take_request();
    } else {
      deadline_s_ = monotonic_s() + server_.limits.body_s;  // it was told to go on
      take_request();
    }
    read();
  }
  // Closing with unread bytes would take back what was written, so they are read first.
  void linger() {
    lingers_ = true;
    error_code ignored;
    socket_.shutdown(Socket::shutdown_send, ignored);
    deadline_s_ = monotonic_s() + kLingerS;
    read();
  }

  void end_answer() {
    streams_ = begun_ = false;
    answers_ = false;
    ++request_;
    gone_ = nullptr;
    // on_written() goes on with the next request.
  }
  void leave() {
    if (!answers_) return;
    answers_ = streams_ = false;
    ++request_;
    if (const auto gone = std::exchange(gone_, nullptr)) gone();
  }

  HttpState& server_;
  Socket socket_;
  RequestReader reader_;
  std::array<char, 8192> in_;
  std::string machine_, owner_;  // of the client, and of the body that is being read
  std::string held_;             // read and not understood yet
  bool request_begun_ = false;
  std::string unwritten_, sending_;
  size_t n_sent_ = 0;  // of sending_
  size_t unwritten_counted_ = 0;
  size_t n_discarded_ = 0, body_bytes_ = 0;
  double deadline_s_ = kNever, written_s_ = 0;
  bool reading_ = false, writing_ = false, closed_ = false, lingers_ = false;
  bool is_far_ahead_ = false;  // more was sent behind the request than is kept: its answer is the last

  // Of the request that is answered.
  uint64_t request_ = 1;
  bool answers_ = false, begun_ = false, streams_ = false;
  bool keep_alive_ = true, takes_chunks_ = true, head_only_ = false;
  std::string alive_;
  std::function<void()> gone_;
};

HttpReply::HttpReply(std::shared_ptr<HttpConnection> connection, uint64_t request)
    : connection_(std::move(connection)), request_(request) {}
HttpConnection* HttpReply::current() const {
  return connection_->open() && connection_->request() == request_ ? connection_.get() : nullptr;
}
bool HttpReply::has_room(size_t bytes) const {
  const HttpConnection* const c = current();
  return c == nullptr || c->has_room(bytes);
}
void HttpReply::send(int status, std::string_view content_type, std::string_view body, const HttpHeaders& more) {
  if (HttpConnection* c = current()) c->send(status, content_type, body, more);
}
void HttpReply::begin(int status, std::string_view content_type, std::string alive, const HttpHeaders& more) {
  if (HttpConnection* c = current()) c->begin(status, content_type, std::move(alive), more);
}
void HttpReply::write(std::string_view text) {
  if (HttpConnection* c = current()) c->write(text);
}
void HttpReply::end() {
  if (HttpConnection* c = current()) c->end();
}
void HttpReply::abort() {
  if (HttpConnection* c = current()) c->close();
}
void HttpReply::on_gone(std::function<void()> gone) {
  if (HttpConnection* c = current()) c->on_gone(std::move(gone));
}

// ---- The server

void HttpState::take(Socket socket) {
  const auto connection = std::make_shared<HttpConnection>(*this, std::move(socket));
  const bool full = std::ssize(connections) >= limits.connections;
  connections.insert(connection);
  if (full) {
    connection->refuse(HttpRefusal(503, "too many connections"));
  } else {
    connection->start();
  }
}

template <class Acceptor>
void HttpState::accept(Acceptor& acceptor) {
  acceptor.async_accept([this, &acceptor](error_code error, auto socket) {
    if (!acceptor.is_open()) return;
    if (error) {  // no descriptors left, most likely: some are free again soon
      const auto timer = std::make_shared<asio::steady_timer>(io, std::chrono::milliseconds(100));
      timer->async_wait([this, &acceptor, timer](error_code) {
        if (acceptor.is_open()) accept(acceptor);
      });
      return;
    }
    error_code ignored;
    if constexpr (std::is_same_v<Acceptor, asio::ip::tcp::acceptor>) {
      socket.set_option(asio::ip::tcp::no_delay(true), ignored);
    }
    take(Socket(std::move(socket)));
    accept(acceptor);
  });
}

void HttpState::sweep() {
  const double now_s = monotonic_s();
  const std::vector<std::shared_ptr<HttpConnection>> all(connections.begin(), connections.end());
  for (const auto& connection : all) connection->look(now_s);
}

void HttpState::repeat(double seconds, std::shared_ptr<std::function<void()>> work) {
  const auto timer = std::make_shared<asio::steady_timer>(
      io, std::chrono::duration_cast<asio::steady_timer::duration>(std::chrono::duration<double>(seconds)));
  timer->async_wait([this, seconds, work, timer](error_code error) {
    if (error) return;
    (*work)();
    repeat(seconds, work);
  });
}

namespace {

bool is_socket(const std::string& path) {
  struct stat file {};
  return lstat(path.c_str(), &file) == 0 && S_ISSOCK(file.st_mode);
}

// Takes a socket away that a process left behind which is gone: nobody answers there. Whatever else has that name is
// somebody's, and stays.
void remove_stale_socket(asio::io_context& io, const asio::local::stream_protocol::endpoint& endpoint) {
  if (!is_socket(endpoint.path()))
    throw Error("cannot listen on unix:{}: there is a file of that name that is no socket", printable(endpoint.path()));
  asio::local::stream_protocol::socket probe(io);
  error_code nobody;
  probe.connect(endpoint, nobody);
  if (nobody != asio::error::connection_refused) throw boost::system::system_error(asio::error::address_in_use);
  unlink(endpoint.path().c_str());
}

}  // namespace

HttpServer::HttpServer(const std::string& host, uint16_t port, const HttpLimits& limits, HttpAnswering answering)
    : state_(std::make_unique<HttpState>()) {
  HttpState& s = *state_;
  s.limits = limits;
  s.limits.all_bodies_bytes = std::max(limits.all_bodies_bytes, 2 * limits.body_bytes);
  s.answering = std::move(answering);
  constexpr std::string_view kUnix = "unix:";
  try {
    if (host.starts_with(kUnix)) {
      s.local_path = host.substr(kUnix.size());
      const asio::local::stream_protocol::endpoint endpoint(s.local_path);
      s.local.emplace(s.io);
      s.local->open(endpoint.protocol());
      error_code in_use;
      s.local->bind(endpoint, in_use);
      if (in_use == asio::error::address_in_use) {
        remove_stale_socket(s.io, endpoint);
        s.local->bind(endpoint);
      } else if (in_use) {
        throw boost::system::system_error(in_use);
      }
      s.local->listen();
      s.accept(*s.local);
    } else {
      asio::ip::tcp::resolver resolver(s.io);
      const asio::ip::tcp::endpoint endpoint = *resolver.resolve(host, std::to_string(port)).begin();
      s.tcp.emplace(s.io, endpoint, /*reuse_addr=*/true);
      s.tcp->listen();
      s.accept(*s.tcp);
    }
  } catch (const boost::system::system_error& error) {
    const std::string where = host.starts_with(kUnix) ? host : fmt::format("{}:{}", host, port);
    throw Error("cannot listen on {}: {}", printable(where), error.code().message());
  }
  every(kSweepS, [&s] { s.sweep(); });
}

HttpServer::~HttpServer() {
  HttpState& s = *state_;
  const std::vector<std::shared_ptr<HttpConnection>> all(s.connections.begin(), s.connections.end());
  for (const auto& connection : all) connection->close_silently();
  if (s.local && is_socket(s.local_path)) unlink(s.local_path.c_str());
}

uint16_t HttpServer::port() const { return state_->tcp ? state_->tcp->local_endpoint().port() : uint16_t{0}; }
void HttpServer::run() {
  for (;;) {
    try {
      state_->io.run();
      return;
    } catch (const std::exception& error) {  // that nobody foresaw: it ends what it met, not the server
      log("bug: {}; the server goes on", printable(error.what()));
    }
  }
}
void HttpServer::stop() { state_->io.stop(); }
void HttpServer::post(std::function<void()> work) { asio::post(state_->io, std::move(work)); }
void HttpServer::every(double seconds, std::function<void()> work) {
  state_->repeat(seconds, std::make_shared<std::function<void()>>(std::move(work)));
}
void HttpServer::drain() {
  HttpState& s = *state_;
  s.draining = true;
  error_code ignored;
  if (s.tcp) s.tcp->close(ignored);
  if (s.local) s.local->close(ignored);
  const std::vector<std::shared_ptr<HttpConnection>> all(s.connections.begin(), s.connections.end());
  for (const auto& connection : all) connection->drain();
}
int64_t HttpServer::n_connections() const { return std::ssize(state_->connections); }

}  // namespace fathom::serve
