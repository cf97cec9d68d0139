#include "parallel/ordered_transport.h"

#include <algorithm>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_set>

#include "base/error.h"

namespace fathom {
namespace {

enum class Kind : int32_t { ready, go, leave };
struct Control {
  Kind kind;
  int32_t tag;
  int64_t n_bytes;
};

// What travels over the host. The host writes into it, so that it stays where an end without the others leaves it.
struct Mail {
  struct Incoming {
    Control control{};
    Communicator::Transfer transfer = 0;
  };
  struct Outgoing {
    Control control{};
    Communicator::Transfer transfer = 0;
  };
  std::map<int, Incoming> incoming;  // by peer
  std::deque<Outgoing> outgoing;
};
void abandon(std::unique_ptr<Mail> mail) {
  static std::mutex mutex;
  static std::vector<std::unique_ptr<Mail>> abandoned;
  const std::lock_guard lock(mutex);
  abandoned.push_back(std::move(mail));
}

// Of equal keys the first that came.
template <class T>
std::optional<T> take_first(std::multimap<int, T>& waiting, int tag) {
  const auto found = waiting.lower_bound(tag);
  if (found == waiting.end() || found->first != tag) return std::nullopt;
  const T first = found->second;
  waiting.erase(found);
  return first;
}

class Ordered : public Communicator {
 public:
  Ordered(std::unique_ptr<OrderedTransport> transport, Communicator& host)
      : Communicator(host.rank(), host.size()), host_(host), transport_(std::move(transport)) {
    FATHOM_CHECK(transport_->at_a_time() > 0);
  }

  ~Ordered() override {
    bool together = !failed_ && std::uncaught_exceptions() == n_exceptions_;
    try {
      if (together) leave();
    } catch (const Error&) {  // the job has failed, and who failed says it
      together = false;
    }
    if (together) return;
    if (!failed_) transport_->abort();
    abandon(std::move(mail_));
  }

  Transfer send(int to, int tag, std::span<const std::byte> data) override {
    const std::lock_guard lock(mutex_);
    Peer& peer = peer_of(to);
    const Send send{++n_, data};
    if (const auto n_bytes = take_first(peer.ready, tag)) {
      match(to, tag, send, *n_bytes);
    } else {
      peer.sends.emplace(tag, send);
    }
    look();
    return send.transfer;
  }

  Transfer receive(int from, int tag, std::span<std::byte> data) override {
    const std::lock_guard lock(mutex_);
    const Receive receive{++n_, data};
    peer_of(from).receives.emplace(tag, receive);
    tell_peer(from, {Kind::ready, tag, std::ssize(data)});
    look();
    return receive.transfer;
  }

  bool done(Transfer transfer) override {
    const std::lock_guard lock(mutex_);
    FATHOM_CHECK(transfer > 0 && transfer <= n_);
    if (done_.erase(transfer) > 0) return true;
    look();
    return done_.erase(transfer) > 0;
  }

  void tell(const std::string& what) override { host_.tell(what); }
  void fail(const std::string& message) override {
    const std::lock_guard lock(mutex_);
    if (!failed_) transport_->abort();
    failed_ = true;
    host_.fail(message);
  }
  void pause(int n_looks) override { host_.pause(n_looks); }

 private:
  struct Send {
    Transfer transfer;
    std::span<const std::byte> data;
  };
  struct Receive {
    Transfer transfer;
    std::span<std::byte> data;
  };
  struct Peer {
    std::multimap<int, Send> sends;        // by tag: not ready there
    std::multimap<int, int64_t> ready;     // by tag: bytes that are awaited there, and nothing is sent yet
    std::multimap<int, Receive> receives;  // by tag: no go yet
    bool is_sending = false, is_receiving = false, left = false;
  };
  // What both sides have, in the order in which it will begin; of one peer one at a time.
  struct ToSend {
    int peer, tag;
    Send send;
  };
  struct ToReceive {
    int peer;
    Receive receive;
  };
  struct Begun {
    OrderedTransport::Handle handle;
    Transfer transfer;
    bool* of_peer;
    int* n_begun;
  };

  Peer& peer_of(int rank) {
    FATHOM_CHECK(rank >= 0 && rank < size() && rank != this->rank());
    const auto [found, is_new] = peers_.try_emplace(rank);
    if (is_new) expect_control(rank);
    return found->second;
  }

  void expect_control(int from) {
    Mail::Incoming& in = mail_->incoming[from];
    in.transfer = host_.receive(from, kControlTag, std::as_writable_bytes(std::span(&in.control, 1)));
  }
  void tell_peer(int to, const Control& control) {
    Mail::Outgoing& out = mail_->outgoing.emplace_back(Mail::Outgoing{control});
    out.transfer = host_.send(to, kControlTag, std::as_bytes(std::span(&out.control, 1)));
  }

  void match(int to, int tag, const Send& send, int64_t n_bytes) {
    FATHOM_CHECK(std::ssize(send.data) == n_bytes, "{} bytes are sent, {} are expected", send.data.size(), n_bytes);
    to_send_.push_back({to, tag, send});
  }

  void hear(int from, Peer& peer, const Control& control) {
    switch (control.kind) {
      case Kind::ready:
        if (const auto send = take_first(peer.sends, control.tag)) {
          match(from, control.tag, *send, control.n_bytes);
        } else {
          peer.ready.emplace(control.tag, control.n_bytes);
        }
        break;
      case Kind::go: {
        const auto receive = take_first(peer.receives, control.tag);
        FATHOM_CHECK(receive.has_value());
        to_receive_.push_back({from, *receive});
        break;
      }
      case Kind::leave:
        peer.left = true;
    }
  }

  // Moves everything on as far as it goes without waiting.
  void look() {
    for (auto& [rank, peer] : peers_) {
      Mail::Incoming& in = mail_->incoming[rank];
      while (!peer.left && host_.done(in.transfer)) {
        const Control control = in.control;
        if (control.kind != Kind::leave) expect_control(rank);
        hear(rank, peer, control);
      }
    }
    for (auto each = begun_.begin(); each != begun_.end();) {
      if (!transport_->done(each->handle)) {
        ++each;
        continue;
      }
      *each->of_peer = false;
      --*each->n_begun;
      done_.insert(each->transfer);
      each = begun_.erase(each);
    }
    begin_receives();
    begin_sends();
    while (!mail_->outgoing.empty() && host_.done(mail_->outgoing.front().transfer)) mail_->outgoing.pop_front();
  }

  void begin_sends() {
    for (auto next = to_send_.begin(); next != to_send_.end() && n_sending_ < transport_->at_a_time();) {
      const auto [to, tag, send] = *next;
      Peer& peer = peers_.at(to);
      if (peer.is_sending) {
        ++next;
        continue;
      }
      next = to_send_.erase(next);
      if (send.data.empty()) {
        done_.insert(send.transfer);
      } else {
        begun_.push_back({transport_->begin_send(to, send.data), send.transfer, &peer.is_sending, &n_sending_});
        peer.is_sending = true;
        ++n_sending_;
      }
      tell_peer(to, {Kind::go, tag, std::ssize(send.data)});  // behind its beginning
    }
  }

  void begin_receives() {
    for (auto next = to_receive_.begin(); next != to_receive_.end() && n_receiving_ < transport_->at_a_time();) {
      const auto [from, receive] = *next;
      Peer& peer = peers_.at(from);
      if (peer.is_receiving) {
        ++next;
        continue;
      }
      next = to_receive_.erase(next);
      if (receive.data.empty()) {
        done_.insert(receive.transfer);
      } else {
        begun_.push_back(
            {transport_->begin_receive(from, receive.data), receive.transfer, &peer.is_receiving, &n_receiving_});
        peer.is_receiving = true;
        ++n_receiving_;
      }
    }
  }

  // Until nobody sends anything here any more.
  void leave() {
    for (const auto& [rank, peer] : peers_) tell_peer(rank, {Kind::leave, 0, 0});
    const auto all_left = [&] {
      return std::all_of(peers_.begin(), peers_.end(), [](const auto& each) { return each.second.left; });
    };
    for (int n = 0; look(), !all_left() || !mail_->outgoing.empty(); ++n) host_.pause(n);
  }

  std::mutex mutex_;  // of all that follows
  Communicator& host_;
  const std::unique_ptr<OrderedTransport> transport_;
  std::unique_ptr<Mail> mail_ = std::make_unique<Mail>();
  const int n_exceptions_ = std::uncaught_exceptions();
  bool failed_ = false;
  Transfer n_ = 0;
  std::map<int, Peer> peers_;  // those that something was sent to or awaited from
  std::deque<ToSend> to_send_;
  std::deque<ToReceive> to_receive_;
  std::vector<Begun> begun_;
  int n_sending_ = 0, n_receiving_ = 0;
  std::unordered_set<Transfer> done_;
};

}  // namespace

std::unique_ptr<Communicator> communicate_over(std::unique_ptr<OrderedTransport> transport, Communicator& host) {
  return std::make_unique<Ordered>(std::move(transport), host);
}

}  // namespace fathom
