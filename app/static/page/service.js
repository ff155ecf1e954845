// Talking with the service: addresses are relative, so that it may stand behind any path.

const KEY = "cat-api-key";
const BUSY_TRIES = 4;
const LONGEST_WAIT = 60; // seconds, whatever the service asks for

/** What the service answered instead of an answer; `message` is its own sentence. */
export class Refusal extends Error {
  constructor(title, detail, status = 0) {
    super(detail);
    this.title = title;
    this.status = status;
  }
}

/** POST a picture; resolves with the answer and the milliseconds of the attempt that got it.
 *  `signal` cancels; `card` is told how it goes: progress(0 to 1), busy(). */
export async function explain(file, signal, card) {
  for (let busy = 0; ; ) {
    await check(file);
    const started = performance.now();
    card.progress(0);
    const { status, body, retryAfter, sentWith } = await send("POST", "explain", file, signal, (share) => card.progress(share));
    if (status === 200 && body) return { told: body, milliseconds: performance.now() - started };
    if (status === 401 && (await otherKey(sentWith, body?.detail))) continue;
    if (status === 503 && retryAfter > 0 && ++busy < BUSY_TRIES) {
      card.busy();
      await wait(1000 * Math.min(retryAfter, LONGEST_WAIT), signal);
      continue;
    }
    throw refusal(status, body);
  }
}

/** GET what is known of the model. */
export async function model() {
  for (;;) {
    const { status, body, sentWith } = await send("GET", "model");
    if (status === 200 && body) return body;
    if (status === 401 && (await otherKey(sentWith, body?.detail))) continue;
    throw refusal(status, body);
  }
}

function refusal(status, body) {
  const title = body?.title ?? "No answer";
  return new Refusal(title, body?.detail ?? `The answer's status is ${status}. Try again.`, status);
}

/** Refuse what cannot be sent: a browser tells of both only that the connection broke. */
async function check(file) {
  const most = Number(document.body.dataset.mostBytes);
  if (file.size > most) {
    const [size, limit] = [file.size, most].map((bytes) => bytes.toLocaleString("en"));
    throw new Refusal(
      "The upload has too many bytes",
      `The upload is announced as ${size} bytes; at most ${limit} are accepted. Scale it down or compress it more.`,
    );
  }
  try {
    // What is gone has no size, and no part of it is asked for: then all of it is.
    await (file.size ? file.slice(0, 1) : file).arrayBuffer();
  } catch {
    throw new Refusal(
      "The file cannot be read",
      "It is a folder, or it was moved, changed or deleted after it was chosen. Choose it again.",
    );
  }
}

// XMLHttpRequest, because fetch does not tell how far an upload is.
function send(method, address, file, signal, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const cancelled = () => reject(new DOMException("Cancelled", "AbortError"));
    if (signal?.aborted) return cancelled();
    const sentWith = key;
    request.open(method, address);
    request.setRequestHeader("Accept", "application/json");
    if (sentWith) request.setRequestHeader("X-API-Key", sentWith);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress?.(event.loaded / event.total);
    request.onload = () => {
      let body = null;
      try {
        body = JSON.parse(request.responseText);
      } catch {
        // a proxy's own page, say: the status has to do
      }
      const retryAfter = Number(request.getResponseHeader("Retry-After"));
      resolve({ status: request.status, body, retryAfter, sentWith });
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

let key = keptKey(); // where the browser keeps nothing, the key lasts until the page is left
let asking = null; // one dialog, however many requests need the key
let declined = false;

/** Somebody has done something new: the key may be asked for again. */
export function mayAsk() {
  declined = false;
}

/** Whether requests are sent with a key; plain links are not. */
export function hasKey() {
  return key !== null;
}

function keptKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // forbidden
  }
}

function keep(given) {
  key = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // forbidden, or full
  }
}

/** Whether there is, by now, another key than the one that was refused. */
async function otherKey(refused, why) {
  if (key !== refused) return true;
  return !declined && askForKey(why);
}

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
        if (given) keep(text.value.trim());
        declined = !given;
        text.value = "";
        asking = null;
        resolve(given);
      },
      { once: true },
    );
  });
  return asking;
}
