/** Small helpers around the document. Text only ever becomes a text node. */

export const byId = (id) => document.getElementById(id);

/** A new element: properties are set as such, `aria-…`, `role` and `data-…` as attributes, strings become text. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (/^(aria-|data-|role$|for$|list$)/.test(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Show a text in a node, or hide the node when there is none. */
export function say(node, text) {
  node.textContent = text ?? "";
  node.hidden = !text;
}

/** A function that runs once calls have paused for `wait` milliseconds. */
export function debounced(action, wait) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...values), wait);
  };
}

/** What is remembered in this browser; nothing where storage is forbidden. */
export const memory = {
  get(name) {
    try {
      return localStorage.getItem(`distcam-${name}`);
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`distcam-${name}`, value);
    } catch {
      // Forbidden: it lasts until the page is left.
    }
  },
};
