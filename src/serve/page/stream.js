// Answers that come as server-sent events.

import { ApiError, ask, errorOf } from './ask.js';

const kSilent_ms = 90000;  // the server lets hear of itself every 15 s

// Splits a text that comes in pieces into the data of server-sent events; comments and other fields are passed over.
export class EventReader {
  #rest = '';
  #data = [];

  push(text) {
    const events = [];
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === '') {
        if (this.#data.length > 0) events.push(this.#data.join('\n'));
        this.#data = [];
      } else if (line.startsWith('data:')) {
        this.#data.push(line.slice(line[5] === ' ' ? 6 : 5));
      }
    }
    return events;
  }
}

// The chunks of an answer, one after the other. Throws ApiError where the server says so or the connection ends too early,
// and the signal's reason where that is why it ended.
export async function* streamChat(body, signal) {
  const silence = new AbortController();
  const either = new AbortController();
  const forward = (source) => source.addEventListener('abort', () => either.abort(source.reason), { once: true });
  forward(signal);
  forward(silence.signal);
  const lost = () => new ApiError(0, 'The connection was lost before the answer was complete.', 'connection_lost');
  let timer = 0;
  const listen = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), kSilent_ms);
  };
  try {
    const response = await ask('POST', '/v1/chat/completions', body, either.signal);
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    const events = new EventReader();
    for (;;) {
      listen();
      const { done, value } = await reader.read();
      if (done) throw lost();
      for (const data of events.push(decoder.decode(value, { stream: true }))) {
        if (data === '[DONE]') return;
        let chunk;
        try {
          chunk = JSON.parse(data);
        } catch {
          throw new ApiError(0, 'The server sent something that is no JSON.', 'bad_answer');
        }
        if (chunk?.error) throw errorOf(200, chunk);
        yield chunk;
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof ApiError) throw error;
    throw lost();
  } finally {
    clearTimeout(timer);
    either.abort();  // whoever stops listening in the middle ends the request
  }
}
