#!/usr/bin/env python3
"""fathom serve under load and abuse, measured as its clients see it. usage: load_test.py PROGRAM [--full] [--only NAME,...]

Without --full each part takes seconds, as ctest runs it; with it the figures of docs/serving.md. Prints one JSON object a part; exit code 1
when something that must hold does not. Standard library alone; the clients share the machine with the server.
"""
import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/shakespeare"
TEXT = (ROOT / "data/tinyshakespeare-val.txt").read_text()


class Failed(Exception):
    pass


def expect(condition, message):
    if not condition:
        raise Failed(message)


class Server:
    def __init__(self, program, *arguments, model=MODEL):
        self.begin = time.monotonic()
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen([program, "serve", "--model", str(model), "--port", "0", "--no-access-log", *arguments],
                                        stdout=subprocess.PIPE, stderr=self.log, encoding="utf-8")
        self.port = int(self.process.stdout.readline().strip().rsplit(":", 1)[1])

    async def __aenter__(self):
        for _ in range(1200):
            with contextlib.suppress(OSError):
                if (await self.get("/ready"))[0] == 200:
                    self.ready_s = time.monotonic() - self.begin
                    return self
            await asyncio.sleep(0.05)
        raise Failed("the server is not ready")

    async def __aexit__(self, kind, value, trace):
        if self.process.poll() is None:
            self.process.terminate()
        code = await asyncio.to_thread(self.process.wait, 60)
        self.process.stdout.close()
        if kind is None and code != 0:
            raise Failed(f"the server ended with {code}: {pathlib.Path(self.log.name).read_text()[-500:]}")

    async def open(self):
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)

    async def get(self, path):
        reader, writer = await self.open()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return int(answer.split(b" ", 2)[1]), answer.split(b"\r\n\r\n", 1)[1].decode()

    async def metric(self, name):
        text = (await self.get("/metrics"))[1]
        return sum(float(v) for v in re.findall(rf"^fathom:{name}\{{[^}}]*\}} (\S+)$", text, re.M))

    async def settled(self):
        """Nothing runs, waits or is held any more."""
        for _ in range(400):
            busy = [await self.metric(name) for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")]
            if not any(busy) and await self.metric("http_connections") <= 1:
                return
            await asyncio.sleep(0.05)
        raise Failed(f"something is still held: running, waiting, pages {busy}, connections {await self.metric('http_connections')}")

    def rss(self):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.process.pid}/status").read_text())[1]) * 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def request_of(body, path="/v1/completions", key=None, closes=False):
    """body: what is to be JSON, or a text that stands as it is."""
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n" + (f"Authorization: Bearer {key}\r\n" if key else "")
    head += "Connection: close\r\n" if closes else ""
    return head.encode() + b"\r\n" + data


class Stream:
    """One streamed completion: its text, finish reason, when pieces came; `status` where it is no stream."""

    def __init__(self):
        self.begin = time.monotonic()
        self.text, self.times, self.status, self.done, self.error, self.logprobs = "", [], None, False, None, []
        self.finish = self.usage = None

    async def run(self, server, body, stop_after=None, key=None):
        reader, writer = await server.open()
        try:
            writer.write(request_of({**body, "stream": True, "stream_options": {"include_usage": True}}, key=key))
            head = await reader.readuntil(b"\r\n\r\n")
            self.status = int(head.split(b" ", 2)[1])
            self.head = head.decode().lower()
            if self.status != 200:
                self.ended = time.monotonic()
                return self
            held = ""
            while size := int((await reader.readline()).split(b";")[0], 16):
                held += (await reader.readexactly(size + 2))[:-2].decode()
                *events, held = held.split("\n\n")
                for event in events:
                    self.take(event)
                if stop_after is not None and len(self.times) >= stop_after:
                    return self
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            self.error = self.error or f"cut: {error}"
        finally:
            writer.close()
        return self

    def take(self, event):
        if not event.startswith("data: "):
            return
        if event == "data: [DONE]":
            self.done = True
            return
        chunk = json.loads(event[6:])
        if "error" in chunk:
            self.error = chunk["error"]["message"]
            return
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            self.finish = choice["finish_reason"] or self.finish
            if choice["text"]:
                self.text += choice["text"]
                self.times.append(time.monotonic())
            if choice.get("logprobs"):
                self.logprobs += choice["logprobs"]["token_logprobs"]


def percentile(values, part):
    values = sorted(values)
    return values[min(len(values) - 1, int(part * len(values)))] if values else float("nan")


def prompts_of(n, rng, most=300):
    prompts = []
    for _ in range(n):
        begin = rng.randrange(len(TEXT) - most)
        prompts.append(TEXT[begin:begin + rng.randrange(20, most)])
    return prompts


async def offline(server, bodies):
    """What each says when nothing else runs."""
    return [(await Stream().run(server, body)).text for body in bodies]


async def streams(o):
    """Many streams at a time: every text is its offline text, nobody starves, memory stays."""
    n, seconds = (256, 600) if o.full else (48, 4)
    rng = random.Random(1)
    async with Server(o.program, "--max-batch", "512", "--max-waiting", "1024", "--ctx", "512", "--cache-tokens", str(1 << 18)) as server:
        bodies = [{"prompt": p, "max_tokens": rng.randrange(40, 200), "temperature": 0, "ignore_eos": True} for p in prompts_of(64, rng)]
        wanted = await offline(server, bodies)
        end = time.monotonic() + seconds
        first, gaps, tokens, memory = [], [], [0] * n, []

        async def client(i):
            mine = random.Random(i)
            while time.monotonic() < end:
                k = mine.randrange(len(bodies))
                s = await Stream().run(server, bodies[k])
                expect(s.status == 200 and s.done and not s.error, f"a stream failed: {s.status} {s.error}")
                expect(s.text == wanted[k], f"other text than offline: {s.text!r} {wanted[k]!r}")
                first.append(s.times[0] - s.begin)
                gaps.extend(b - a for a, b in zip(s.times, s.times[1:]))
                tokens[i] += s.usage["completion_tokens"]

        async def watch():
            while time.monotonic() < end:
                memory.append(server.rss())
                await asyncio.sleep(0.5)
        await asyncio.gather(watch(), *(client(i) for i in range(n)))
        settled_memory = memory[len(memory) // 3:]
        growth = max(settled_memory) / settled_memory[0] - 1
        await server.settled()
        fairness = max(tokens) / min(tokens)
        if o.full:
            expect(growth < 0.02, f"memory grew by {100 * growth:.1f} %")
            expect(fairness < 1.5, f"the fastest stream got {fairness:.2f} times the slowest")
        return {"streams": n, "seconds": seconds, "texts": len(first), "tokens_per_s": round(sum(tokens) / seconds), "first_token_p50_s": round(percentile(first, 0.5), 3),
                "first_token_p99_s": round(percentile(first, 0.99), 3), "gap_p50_ms": round(1e3 * percentile(gaps, 0.5), 1), "gap_p99_ms": round(1e3 * percentile(gaps, 0.99), 1),
                "fastest_to_slowest": round(fairness, 3), "memory_MB": round(memory[-1] / 1e6), "memory_growth_percent": round(100 * growth, 2)}


async def invariance(o):
    """Log probabilities are the same to the last bit alone and in any company, with shared prefixes and prompts read in pieces."""
    n = 1000 if o.full else 60
    rng = random.Random(2)
    common = prompts_of(4, rng, 200)
    bodies = []
    for p in prompts_of(n, rng, 200):
        prompt = (rng.choice(common) if rng.random() < 0.5 else "") + p
        bodies.append({"prompt": prompt, "max_tokens": rng.randrange(1, 24), "temperature": rng.choice([0, 0, 0.9]), "seed": rng.randrange(1000), "logprobs": 3})
    async with Server(o.program, "--pass-tokens", "4096", "--max-batch", "1") as server:
        alone = [await Stream().run(server, body) for body in bodies]
    async with Server(o.program, "--pass-tokens", "48", "--max-batch", "64", "--max-waiting", "1024", "--cache-tokens", "8192") as server:
        together = [None] * n

        async def group(first, size):
            async def one(i):
                await asyncio.sleep(rng.random() * 0.05)
                together[i] = await Stream().run(server, bodies[i])
            await asyncio.gather(*(one(i) for i in range(first, min(first + size, n))))
        first = 0
        while first < n:
            size = rng.randrange(2, 65)
            await group(first, size)
            first += size
        hits = await server.metric("prefix_cache_hits_total")
    for a, b in zip(alone, together):
        expect(a.text == b.text and a.logprobs == b.logprobs, f"not the same in company: {a.text!r} {b.text!r}")
    expect(hits > 0, "nothing was shared")
    return {"prompts": n, "tokens_compared": sum(len(a.logprobs) for a in alone), "tokens_found_in_cache": int(hits)}


async def cancels(o):
    """Clients that go at any moment leave no place, page or descriptor behind, and health answers all the while."""
    n = 10_000 if o.full else 300
    rng = random.Random(3)
    slowest = 0.0
    async with Server(o.program, "--max-batch", "32", "--max-waiting", "4096") as server:
        await offline(server, [{"prompt": "O", "max_tokens": 4}])
        before, busy = server.descriptors(), True

        async def one():
            reader, writer = await server.open()
            data = request_of({"prompt": rng.choice(TEXT.split("\n\n"))[:200] or "O", "max_tokens": 400, "ignore_eos": True, "stream": rng.random() < 0.7, "n": rng.choice([1, 1, 3])})
            writer.write(data[: rng.randrange(1, len(data) + 1) if rng.random() < 0.3 else len(data)])
            await asyncio.sleep(rng.random() * 0.1)
            if rng.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()

        async def health():
            nonlocal slowest
            while busy:
                begin = time.monotonic()
                await server.get("/health")
                slowest = max(slowest, time.monotonic() - begin)
                await asyncio.sleep(0.05)
        watching = asyncio.create_task(health())
        for _ in range(n // 20):
            await asyncio.gather(*(one() for _ in range(20)))
        busy = False
        await watching
        await server.settled()
        expect(server.descriptors() <= before, f"{server.descriptors()} descriptors, {before} before")
        return {"cancelled": n, "health_slowest_ms": round(1e3 * slowest, 1)}


async def overload(o):
    """Ten times what there is room for: the excess is told at once, the others keep their pace."""
    seconds = 60 if o.full else 4
    rng = random.Random(4)
    async with Server(o.program, "--max-batch", "8", "--max-waiting", "8") as server:
        bodies = [{"prompt": p, "max_tokens": 100, "temperature": 0, "ignore_eos": True} for p in prompts_of(32, rng, 100)]

        async def load(clients, seconds):
            end, gaps, refused, served = time.monotonic() + seconds, [], [], 0

            async def client(i):
                nonlocal served
                while time.monotonic() < end:
                    s = await Stream().run(server, bodies[i % len(bodies)])
                    if s.status == 429:
                        expect("retry-after: " in s.head, "429 without Retry-After")
                        refused.append(s.ended - s.begin)
                        await asyncio.sleep(0.5)
                        continue
                    expect(s.status == 200 and s.done and not s.error, f"{s.status} {s.error}")
                    served += 1
                    gaps.extend(b - a for a, b in zip(s.times, s.times[1:]))
            await asyncio.gather(*(client(i) for i in range(clients)))
            return gaps, refused, served
        calm, none, _ = await load(8, seconds / 2)
        gaps, refused, served = await load(160, seconds)
        expect(not none and refused, "overload was not told, or told where there was none")
        result = {"served": served, "refused": len(refused), "refusal_p50_ms": round(1e3 * percentile(refused, 0.5), 1), "refusal_p99_ms": round(1e3 * percentile(refused, 0.99), 1),
                  "gap_p99_ms": round(1e3 * percentile(gaps, 0.99), 1), "gap_p99_calm_ms": round(1e3 * percentile(calm, 0.99), 1)}
        if o.full:
            expect(percentile(refused, 0.99) < 0.05, f"refusals take long: {result}")
            expect(percentile(gaps, 0.99) < 2 * percentile(calm, 0.99), f"who is served suffers: {result}")
        return result


async def slow(o):
    """Headers and bodies that never come and answers that nobody reads are closed in time; the others notice nothing."""
    n = 200 if o.full else 8
    limit = 3.0
    timeouts = [v for name in ("--header-timeout", "--body-timeout", "--idle-timeout", "--write-timeout") for v in (name, str(limit))]
    async with Server(o.program, *timeouts, "--max-waiting", "4096", "--max-batch", "256") as server:
        body = {"prompt": "O", "max_tokens": 100, "temperature": 0, "ignore_eos": True}
        [wanted] = await offline(server, [body])
        # A megabyte of answer into a socket whose client never reads.
        unread = request_of({"prompt": "O", "max_tokens": 500, "ignore_eos": True, "n": 20, "logprobs": 20, "stream": True})
        kinds = [b"GET /health HTTP/1.1\r\nHost: loc", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{", unread]
        sockets = []
        for i in range(3 * n):
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", server.port))
            s.sendall(kinds[i % 3])
            sockets.append(s)
        begin = time.monotonic()
        worst = 0.0
        # Answers that nobody reads have 20 sequences each, which take turns: what fills a socket comes after a while.
        while time.monotonic() - begin < 4 * limit + 20 + 2 * n:
            s = await Stream().run(server, body)
            expect(s.text == wanted and s.done, "a well-behaved client was harmed")
            worst = max(worst, s.times[0] - s.begin)
            if await server.metric("http_connections") <= 1:
                break
            await asyncio.sleep(0.2)
        took = time.monotonic() - begin
        expect(await server.metric("http_connections") <= 1, "slow clients are still there")
        for s in sockets:
            s.close()
        await server.settled()
        expect(worst < 5, f"a well-behaved client waited {worst:.1f} s for its first token")
        return {"slow_clients": 3 * n, "limit_s": limit, "all_closed_after_s": round(took, 1), "others_first_token_worst_s": round(worst, 2)}


async def ending(o):
    """SIGTERM in the middle of work: no stream is cut without a word, and the exit code is 0 within the time."""
    n = 50 if o.full else 4
    rng = random.Random(5)
    ended, told = 0, 0
    for i in range(n):
        drain = rng.choice([0.0, 0.05, 5.0])
        server = Server(o.program, "--drain-timeout", str(drain))
        async with server:
            all_streams = [Stream() for _ in range(12)]
            running = [asyncio.create_task(s.run(server, {"prompt": "O", "max_tokens": 450, "ignore_eos": True})) for s in all_streams]
            await asyncio.sleep(0.02 + rng.random() * 0.1)
            begin = time.monotonic()
            server.process.terminate()
            await asyncio.gather(*running, return_exceptions=True)
            code = await asyncio.to_thread(server.process.wait, 60)
            took = time.monotonic() - begin
            expect(code == 0 and took < drain + 5, f"exit code {code} after {took:.1f} s of {drain}")
            for s in all_streams:
                if s.status is None:
                    continue  # came too late to be let in
                if s.status == 200 and not s.error:
                    expect(s.done, "a stream was cut without a word")
                    ended += 1
                else:
                    expect(s.status in (200, 503) and not str(s.error).startswith("cut"), f"{s.status} {s.error}")
                    told += 1
    return {"times": n, "streams_ended": ended, "streams_told": told}


async def heavy(o):
    """Bodies that take long to read: who asks for them waits, others do not, and the server ends in time in their middle."""
    n = 150_000 if o.full else 30_000
    keys = "{" + ",".join(f'"{i:x}": 0' for i in range(n)) + "}"
    chat = '{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, '
    bodies = {
        "chat_template_kwargs": ("/v1/chat/completions", chat + f'"chat_template_kwargs": {keys}}}'),
        "unknown field": ("/v1/messages", chat + f'"unknown": {keys}}}'),
        "parameters": ("/v1/chat/completions", chat + f'"tools": [{{"type": "function", "function": {{"name": "f", "parameters": {keys}}}}}]}}'),
        "schema": ("/v1/chat/completions", chat + f'"response_format": {{"type": "json_schema", "json_schema": {{"name": "n", "schema": {{"type": "object", "properties": {keys}}}}}}}}}'),
        "logit_bias": ("/v1/completions", '{"prompt": "x", "max_tokens": 1, "logit_bias": {' + ",".join(f'"{i}": 0' for i in range(n)) + "}}"),
        "prompt": ("/v1/completions", json.dumps({"prompt": " " * (8_000_000 if o.full else 800_000), "max_tokens": 1})),
        "tokens of a text": ("/tokenize", json.dumps({"content": "x" * 8_000_000})),
        "text of tokens": ("/detokenize", json.dumps({"tokens": [1] * 2_600_000})),
    }

    async def ask(server, path, body):
        reader, writer = await server.open()
        writer.write(request_of(body, path, closes=True))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.read()
        writer.close()
        return int(head.split(b" ", 2)[1])

    took, waited = {}, 0.0
    async with Server(o.program) as server:
        for name, (path, body) in bodies.items():
            begin = time.monotonic()
            heavy_one = asyncio.create_task(ask(server, path, body))
            await asyncio.sleep(0.05)
            while True:
                s = await Stream().run(server, {"prompt": "x", "max_tokens": 1})
                waited = max(waited, s.times[0] - s.begin)
                if heavy_one.done():
                    break
            expect(await heavy_one < 500, f"{name}: {await heavy_one}")
            took[name] = round(time.monotonic() - begin, 2)
        # Long answers that nobody takes: some get them, the others are told that there is no room.
        n = 40 if o.full else 12
        idle = []
        begin = time.monotonic()
        for _ in range(n):
            reader, writer = await server.open()
            writer.write(request_of(bodies["text of tokens"][1], "/detokenize"))
            idle.append((reader, writer))
        while time.monotonic() - begin < 8:
            s = await Stream().run(server, {"prompt": "x", "max_tokens": 1})
            waited = max(waited, s.times[0] - s.begin)
        memory = server.rss()
        for _, writer in idle:
            writer.transport.abort()
    expect(waited < 1, f"another client waited {waited:.1f} s for a token")
    expect(memory < 1 << 30, f"answers that nobody took filled {memory >> 20} MiB")
    for i in range(20 if o.full else 3):
        async with Server(o.program, "--drain-timeout", "0.1") as server:
            path, body = bodies["prompt"]
            heavy_one = asyncio.create_task(ask(server, path, body))
            await asyncio.sleep(0.01 + i * 0.01)
            begin = time.monotonic()
            server.process.terminate()
            status = await heavy_one
            expect(status in (400, 503), f"while it was being read: {status}")
            code = await asyncio.to_thread(server.process.wait, 60)
            expect(code == 0 and time.monotonic() - begin < 5, f"exit code {code} after {time.monotonic() - begin:.1f} s")
    return {"took_s_each": took, "others_first_token_worst_s": round(waited, 2), "untaken_answers": n, "memory_MB": memory >> 20}


async def prefix(o):
    """A long beginning that is there already costs next to nothing the second time."""
    async with Server(o.program) as server:
        first, second = [], []
        for i in range(20 if o.full else 5):
            text = TEXT[i * 500:i * 500 + 480]
            for times, tail in ((first, "a"), (second, "b")):
                s = await Stream().run(server, {"prompt": text + tail, "max_tokens": 2, "temperature": 0})
                times.append(s.times[0] - s.begin)
        return {"first_ms": round(1e3 * statistics.median(first), 2), "again_ms": round(1e3 * statistics.median(second), 2)}


async def restart(o):
    """Killed by SIGKILL while it writes beginnings of prompts to files, and begun again: they are there whole, or not at all."""
    n = 50 if o.full else 4
    rng = random.Random(6)
    loaded = damaged = 0
    ready_s = []
    bodies = [{"prompt": p, "max_tokens": 4, "temperature": 0, "logprobs": 2} for p in prompts_of(24, rng, 450)]
    async with Server(o.program) as server:
        wanted = [await Stream().run(server, body) for body in bodies]
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            for path in rng.sample(files := sorted(pathlib.Path(folder).rglob("*.page")), min(2, len(files))):
                content = bytearray(path.read_bytes())
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
                path.write_bytes(content[:rng.randrange(len(content))] if rng.random() < 0.3 else content)
                damaged += 1
            # Little memory, so that files are read in one life of the server too.
            server = Server(o.program, "--prefix-cache", folder, "--cache-tokens", "4096")
            try:
                await server.__aenter__()
                ready_s.append(server.ready_s)
                order = rng.sample(range(len(bodies)), 12)
                answers = await asyncio.gather(*(Stream().run(server, bodies[k]) for k in order))
                for k, s in zip(order, answers):
                    expect(s.text == wanted[k].text and s.logprobs == wanted[k].logprobs, f"another answer: {s.text!r} {wanted[k].text!r}")
                loaded += await server.metric("prefix_cache_loaded_total")
                writing = [asyncio.create_task(Stream().run(server, body)) for body in bodies]
                await asyncio.sleep(rng.random() * 0.1)
            finally:
                server.process.kill()
                server.process.wait()
                server.process.stdout.close()
            await asyncio.gather(*writing, return_exceptions=True)
    expect(loaded > 0, "nothing was found in files")
    if o.full:
        expect(max(ready_s) < 2, f"ready after {max(ready_s):.1f} s")
    return {"kills": n, "files_damaged": damaged, "tokens_found_in_files": int(loaded), "ready_worst_s": round(max(ready_s), 2)}


def chance_of(a, b, rng, rounds=2000):
    """That means so far apart come of one distribution: by permutation."""
    apart = abs(statistics.mean(a) - statistics.mean(b))
    both, as_far = a + b, 0
    for _ in range(rounds):
        rng.shuffle(both)
        as_far += abs(statistics.mean(both[:len(a)]) - statistics.mean(both[len(a):])) >= apart
    return (as_far + 1) / (rounds + 1)


async def isolation(o):
    """What one key's prompts left in the cache another does not find: neither in what is told nor in the time of its answers."""
    n = 1000 if o.full else 60
    rng = random.Random(7)
    with tempfile.NamedTemporaryFile("w") as keys:
        keys.write("sk-first\nsk-second\n")
        keys.flush()
        async with Server(o.program, "--api-key-file", keys.name) as server:
            async def first_token(key, prompt):
                s = await Stream().run(server, {"prompt": prompt, "max_tokens": 1}, key=key)
                expect(s.status == 200 and s.done, f"{s.status} {s.error}")
                return s.times[0] - s.begin, s.usage["prompt_tokens_details"]["cached_tokens"]
            mine, others, new = [], [], []
            for _ in range(n):
                known, unknown = ("".join(rng.choices("abcdefgh \n", k=400)) for _ in range(2))
                await first_token("sk-first", known)
                for times, key, prompt, cached in rng.sample([(mine, "sk-first", known, 384), (others, "sk-second", known, 0), (new, "sk-second", unknown, 0)], 3):
                    took, found = await first_token(key, prompt)
                    expect(found == cached, f"{key} was told of {found} tokens in the cache, not {cached}")
                    times.append(took)
    chance, own_chance = chance_of(others, new, rng), chance_of(mine, new, rng)
    expect(own_chance < 0.01, "the measurement cannot tell what is cached from what is not")
    # By chance alone 0.05 comes up once in twenty times.
    expect(chance > 0.001, f"another key's prompts are told from new ones by time: chance {chance:.4f}")
    times = {name: round(1e3 * statistics.median(values), 2) for name, values in (("own", mine), ("others", others), ("new", new))}
    return {"prompts": n, "first_token_ms": times, "chance_that_others_are_as_new": round(chance, 3)}


PARTS = {f.__name__: f for f in (streams, invariance, cancels, overload, slow, heavy, ending, prefix, restart, isolation)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS))
    o = parser.parse_args()
    failed = 0
    for name in o.only.split(","):
        begin = time.monotonic()
        try:
            result = asyncio.run(PARTS[name](o))
        except Failed as failure:
            failed += 1
            result = {"FAILED": str(failure)}
        print(json.dumps({"part": name, **result, "took_s": round(time.monotonic() - begin, 1)}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
