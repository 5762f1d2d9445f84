/**
 * Pictures on their way, a few at a time. A browser keeps six connections to a server: were all of them taken by pictures that are still being
 * made, a verdict would wait behind them.
 */

const MOST = 4

/** @type {Map<HTMLImageElement, string>} addresses, in the order of their turn */
const waiting = new Map()
/** @type {Set<HTMLImageElement>} */
const loading = new Set()
/** @type {Map<HTMLImageElement, string>} what did not come */
const failed = new Map()

/**
 * Give an image its address when it is its turn; one that has it, or is getting it, is left alone.
 * @template {HTMLImageElement} T
 * @param {T} image @param {string} address @param {boolean} [soon] before all that wait
 * @returns {T}
 */
export function load(image, address, soon = false) {
  if (image.naturalWidth || loading.has(image)) return image
  const others = soon ? [...waiting] : []
  if (soon) waiting.clear()
  waiting.set(image, address)
  for (const [other, where] of others) if (other !== image) waiting.set(other, where)
  next()
  return image
}

/** These are not wanted any more. @param {Iterable<HTMLImageElement>} images */
export function forget(images) {
  for (const image of images) {
    waiting.delete(image)
    failed.delete(image)
    if (loading.delete(image)) image.removeAttribute("src") // which ends it, without an event
  }
  next()
}

/** The server is back: ask again for what is still to be seen. */
export function again() {
  for (const [image, address] of failed) if (image.isConnected) load(image, address)
  failed.clear()
}

/** Resolves when nothing is on its way any more, or after so many ms. @param {number} patience_ms @returns {Promise<void>} */
export function settled(patience_ms) {
  return new Promise((resolve) => {
    const until = performance.now() + patience_ms
    const look = () => (waiting.size + loading.size && performance.now() < until ? setTimeout(look, 20) : resolve())
    look()
  })
}

function next() {
  for (const [image, address] of waiting) {
    if (loading.size >= MOST) return
    waiting.delete(image)
    begin(image, address)
  }
}

function begin(image, address) {
  const ended = ({ type }) => {
    image.removeEventListener("load", ended)
    image.removeEventListener("error", ended)
    if (!loading.delete(image)) return
    if (type === "error") failed.set(image, address)
    next()
  }
  image.addEventListener("load", ended)
  image.addEventListener("error", ended)
  loading.add(image)
  image.src = address
}
