/** The REST API. Everything is asked of the server that this page came from. */

const PATIENCE_S = 90;

/** A request without the answer that was hoped for; `status` 0 means that the server could not be reached. */
export class ApiError extends Error {
  constructor(status, detail, retryAfter = null) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

function address(path, query = {}) {
  const url = new URL(`api/v1/${path}`, document.baseURI);
  url.hash = "";
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

async function ask(url, options = {}, read = (response) => response.json()) {
  const patience = AbortSignal.timeout(PATIENCE_S * 1000);
  const signal = options.signal ? AbortSignal.any([options.signal, patience]) : patience;
  let response;
  try {
    response = await fetch(url, { ...options, signal });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    if (patience.aborted) throw new ApiError(0, `The server has not answered for ${PATIENCE_S} seconds.`);
    throw new ApiError(0, navigator.onLine ? "The server cannot be reached." : "You are offline, and the server cannot be reached.");
  }
  if (!response.ok) throw await refusal(response);
  return read(response);
}

async function refusal(response) {
  let detail = null;
  try {
    detail = (await response.json()).detail;
  } catch {
    // Not the API's own words, from a proxy perhaps.
  }
  if (Array.isArray(detail)) detail = detail.map((part) => `${(part.loc ?? []).at(-1) ?? ""}: ${part.msg}`).join("; ");
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  return new ApiError(response.status, detail || `The server answered ${response.status}.`, Number.isFinite(seconds) ? seconds : null);
}

const post = (url, body, signal) =>
  ask(url, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal });

/** Tell the server its read token, for which it gives a cookie; whether it was the right one. */
export async function introduce(token) {
  const url = new URL(document.baseURI);
  [url.hash, url.search] = ["", ""];
  url.searchParams.set("token", token);
  return (await fetch(url)).ok;
}

export const gallery = () => ask(address("gallery"));
export const labels = (prefix, signal) => ask(address("labels", { prefix, limit: 50 }), { signal });
export const images = (query, signal) => ask(address("images", query), { signal });
export const image = (id, signal) => ask(address(`images/${id}`), { signal });
export const atlas = (outliers) => ask(address("atlas", { outliers }));
export const pictureUrl = (id, side, whole = false) => address(`images/${id}/picture`, { side, whole: whole || null }).href;
/** The image behind a URL, as a blob. */
export const fetched = (url) => ask(address("fetch", { url }), { method: "POST" }, (response) => response.blob());

/** Search by an image of the user's, or by the text alone; `question` holds text, k, where, box, reject, max_distance. */
export function searchUpload(blob, name, question, signal) {
  const { box, ...query } = question;
  if (box) [query.left, query.top, query.right, query.bottom] = box;
  const form = new FormData();
  if (blob) form.append("image", blob, name);
  return ask(address("search", query), { method: "POST", body: form, signal });
}

export const searchStored = (id, question, signal) => post(address("search/stored"), { id, ...question }, signal);
export const lines = (question, signal) => post(address("lines"), question, signal);
export const explain = (question, signal) => post(address("explain"), question, signal);
