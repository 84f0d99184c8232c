/** Numbers in words. */

export const digits = (value, places = 3) =>
  value === null || value === undefined ? "–" : Number(value).toFixed(places).replace(/^-(0\.?0*)$/, "$1").replace("-", "−");

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

const milliseconds = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0));

/** How long an answer took. */
export function timing(timings) {
  if (!timings || !(timings.total >= 0)) return "";
  const names = { decode: "reading the image", queue: "waiting", encode: "encoding", search: "searching" };
  const parts = Object.entries(names)
    .filter(([name]) => timings[name] >= 0.05)
    .map(([name, words]) => `${words} ${milliseconds(timings[name])}`);
  return `Answered in ${milliseconds(timings.total)} ms${parts.length ? ` (${parts.join(", ")})` : ""}.`;
}

/** A label as it is shown. */
export const labelled = (label) => (label === null || label === undefined || label === "" ? "no label" : label);

/** "label:cat" → "cat", "rank:2" → "match 2". */
export const plainly = (name) => (name.startsWith("label:") ? name.slice(6) : name.startsWith("rank:") ? `match ${name.slice(5)}` : name);

/** The last part of a path. */
export const fileName = (path) => path.split("/").at(-1) || path;
