// Speaks to the server: requests with the key where one is needed.

const kKey = 'fathom.key';

export class ApiError extends Error {
  constructor(status, message, code = '') {
    super(message);
    this.status = status;  // 0: the connection failed
    this.code = code;
  }
}

let memory_key = '';  // where the browser has no storage for the page

export function apiKey() {
  try {
    return sessionStorage.getItem(kKey) ?? memory_key;
  } catch {
    return memory_key;
  }
}

export function setApiKey(key) {
  memory_key = key;
  try {
    sessionStorage.setItem(kKey, key);
  } catch {
    // memory_key it is
  }
}

function headers() {
  const all = { 'Content-Type': 'application/json' };
  if (apiKey()) all.Authorization = 'Bearer ' + apiKey();
  return all;
}

// Of what the server says in place of an answer.
export function errorOf(status, json, retry_after) {
  const error = json?.error ?? {};
  let message = typeof error === 'string' ? error : error.message;
  message = String(message ?? `the server answered ${status}`);
  if (retry_after) message += ` (try again in ${retry_after} s)`;
  return new ApiError(status, message, String(error.code ?? error.type ?? ''));
}

// The response, or ApiError.
export async function ask(method, path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method, signal, headers: headers(), cache: 'no-store', body: body === undefined ? undefined : JSON.stringify(body)
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError(0, 'The server cannot be reached.', 'no_connection');
  }
  if (!response.ok) {
    const json = await response.json().catch(() => null);
    throw errorOf(response.status, json, response.headers.get('retry-after'));
  }
  return response;
}

export async function getJson(path) {
  return (await ask('GET', path)).json();
}

export async function postJson(path, body) {
  return (await ask('POST', path, body)).json();
}
