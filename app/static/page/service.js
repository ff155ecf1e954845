// Talking with the service: addresses are relative, so that it may stand behind any path.

const KEY = "cat-api-key";
const BUSY_TRIES = 4;

/** What the service answered instead of an answer; `message` is its own sentence. */
export class Refusal extends Error {
  constructor(title, detail, status = 0) {
    super(detail);
    this.title = title;
    this.status = status;
  }
}

/** POST a picture; resolves with the answer. `signal` cancels, `onProgress` gets 0 to 1. */
export async function explain(file, signal, onProgress) {
  for (let tries = 1; ; tries++) {
    const { status, body, retryAfter } = await send("POST", "explain", file, signal, onProgress);
    if (status === 200 && body) return body;
    if (status === 401 && (await askForKey(body?.detail))) continue;
    if (status === 503 && retryAfter && tries < BUSY_TRIES) {
      await wait(retryAfter * 1000, signal);
      continue;
    }
    throw refusal(status, body);
  }
}

/** GET what is known of the model. */
export async function model() {
  for (;;) {
    const { status, body } = await send("GET", "model");
    if (status === 200 && body) return body;
    if (status === 401 && (await askForKey(body?.detail))) continue;
    throw refusal(status, body);
  }
}

function refusal(status, body) {
  const title = body?.title ?? "No answer";
  return new Refusal(title, body?.detail ?? `The answer's status is ${status}. Try again.`, status);
}

// XMLHttpRequest, because fetch does not tell how far an upload is.
function send(method, address, file, signal, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const cancelled = () => reject(new DOMException("Cancelled", "AbortError"));
    if (signal?.aborted) return cancelled();
    request.open(method, address);
    request.setRequestHeader("Accept", "application/json");
    const key = sessionStorage.getItem(KEY);
    if (key) request.setRequestHeader("X-API-Key", key);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress?.(event.loaded / event.total);
    request.onload = () => {
      let body = null;
      try {
        body = JSON.parse(request.responseText);
      } catch {
        // a proxy's own page, say: the status has to do
      }
      resolve({ status: request.status, body, retryAfter: Number(request.getResponseHeader("Retry-After")) });
    };
    request.onerror = () =>
      reject(new Refusal("No answer", "The service cannot be reached. Check the connection and try again."));
    request.onabort = cancelled;
    signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(file ?? null);
  });
}

function wait(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("Cancelled", "AbortError"));
    });
  });
}

let asking = null; // one dialog, however many requests need the key

function askForKey(why) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key");
    const text = document.getElementById("key-text");
    document.getElementById("key-why").textContent = why ?? "";
    text.value = "";
    dialog.returnValue = "";
    dialog.showModal();
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "use";
        if (given) sessionStorage.setItem(KEY, text.value.trim());
        text.value = "";
        asking = null;
        resolve(given);
      },
      { once: true },
    );
  });
  return asking;
}
