// Talking to the service. Addresses are relative, so it may stand behind any path.

const KEY = "cat-api-key";
const MOST_TRIES = 4; // while the service is busy
const LONGEST_WAIT = 60; // seconds between tries, whatever the service asks for

const key = document.getElementById("key");

/** Why there is no answer; `message` is the service's own sentence where it sent one. */
export class Refusal extends Error {
  constructor(title, detail) {
    super(detail);
    this.title = title;
  }
}

/** POST a picture. Returns the answer and the milliseconds of the attempt that got it.
 *  signal: cancels; onProgress(share): how much is sent, 0 to 1; onBusy(): it will try again. */
export async function explain(file, signal, { onProgress, onBusy }) {
  for (let tries = 1; ; tries++) {
    await checkFile(file);
    const started = performance.now();
    const response = await send("POST", "explain", file, signal, onProgress);
    const milliseconds = performance.now() - started;
    if (response.status === 200) return { answer: response.body, milliseconds };
    const { status, retryAfter } = response;
    if (status !== 503 || !retryAfter || tries === MOST_TRIES) throw refusalOf(response);
    onBusy();
    await wait(Math.min(retryAfter, LONGEST_WAIT), signal);
  }
}

/** POST a picture with its correct class, to be saved. Returns its id. */
export async function giveFeedback(file, label) {
  await checkFile(file);
  const response = await send("POST", `feedback?label=${encodeURIComponent(label)}`, file);
  if (response.status !== 200) throw refusalOf(response);
  return response.body.id;
}

/** DELETE a saved picture; it is no error if it is already gone. */
export async function takeBack(id) {
  const response = await send("DELETE", `feedback/${id}`);
  if (![204, 404].includes(response.status)) throw refusalOf(response);
}

/** GET what is known of the model. */
export async function getModel() {
  const response = await send("GET", "model");
  if (response.status !== 200) throw refusalOf(response);
  return response.body;
}

/** Whether there is a key, where the service needs one; if not, the browser asks for it. */
export function hasKey() {
  return key.reportValidity();
}

function refusalOf({ status, body }) {
  if (status === 401 && key.required) {
    const invalid = "This key is not valid. Enter another one above.";
    return new Refusal("No answer", key.value ? invalid : "Enter the key above.");
  }
  const detail = body?.detail ?? `The service answered with status ${status}. Try again.`;
  return new Refusal(body?.title ?? "No answer", detail);
}

/** Refuse what cannot be sent: for both, the browser says only that the connection broke. */
async function checkFile(file) {
  const most = Number(document.body.dataset.maxUploadBytes);
  if (file.size > most) {
    const [size, limit] = [file.size, most].map((bytes) => bytes.toLocaleString("en"));
    const detail = `It has ${size} bytes. The limit is ${limit}.`;
    throw new Refusal("The picture is too large", `${detail} Make it smaller or compress it more.`);
  }
  try {
    // A file that is gone has size 0. Reading no bytes of it would succeed, so read all.
    await (file.size ? file.slice(0, 1) : file).arrayBuffer();
  } catch {
    const detail = "It is a folder, or it was moved, changed or deleted after you chose it.";
    throw new Refusal("The file cannot be read", `${detail} Choose it again.`);
  }
}

// XMLHttpRequest, because fetch does not say how much of an upload is sent.
function send(method, address, file = null, signal = undefined, onProgress = undefined) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open(method, address);
    request.responseType = "json"; // gives null for anything else, such as a proxy's own page
    request.setRequestHeader("Accept", "application/json");
    if (key.value) request.setRequestHeader("X-API-Key", key.value.trim());
    request.upload.onprogress = (event) => onProgress?.(event.loaded / event.total);
    request.onload = () => {
      const retryAfter = Number(request.getResponseHeader("Retry-After"));
      resolve({ status: request.status, body: request.response, retryAfter });
    };
    const unreachable = "The service cannot be reached. Check the connection and try again.";
    request.onerror = () => reject(new Refusal("No answer", unreachable));
    request.onabort = () => reject(signal.reason);
    signal?.throwIfAborted();
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

function wait(seconds, signal) {
  return new Promise((resolve) => {
    setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", resolve);
  });
}

try {
  key.value = sessionStorage.getItem(KEY);
  key.addEventListener("input", () => sessionStorage.setItem(KEY, key.value));
} catch {
  // A browser may forbid to keep anything: the key then lasts as long as the page.
}
