/** What the panel says by the way: a line that fades, with one way back, and the bar for what went wrong. */

import { button, element, find } from "../review/dom.mjs"

const TOAST_MS = 8000
let fading = 0

/** @param {string} text @param {string} [word] @param {() => void} [act] */
export function toast(text, word, act) {
  const shown = find("#toast")
  shown.replaceChildren(element("span", { text }), word ? button({ class: "quiet", text: word, on: { click: () => { shown.classList.remove("up"); act?.() } } }) : "")
  shown.classList.add("up")
  clearTimeout(fading)
  fading = setTimeout(() => shown.classList.remove("up"), TOAST_MS)
}

/** @param {Error} error */
export function trouble(error) {
  find("#trouble-text").textContent = error.message
  find("#trouble").hidden = false
}
