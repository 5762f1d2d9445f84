/**
 * The review page over ComfyUI: a dialog with a frame, so that neither hears the other's keys. A room stays once it was opened: it opens again
 * at once, as it was, and verdicts on their way are not cut off.
 */

import { pageAddress } from "./api.mjs"
import { element } from "./dom.mjs"
import { t } from "./lang.mjs"

const CLOSE = "flenwheel.close"
/** @type {Map<string, HTMLDialogElement>} */
const rooms = new Map()

/** @param {import("./api.mjs").CandidateSet|null} set null: the list of projects @param {{key?: string|null, theme: "dark"|"light"}} [options] */
export function openRoom(set, { key = null, theme } = { theme: "dark" }) {
  const name = set ? `${set.project}/${set.stage}/${set.version}` : ""
  const url = new URL(set ? pageAddress(set) : pageAddress(/** @type {any} */ ({})))
  if (key) url.searchParams.set("key", key)
  openFrame(name, url, t("FLENwheel review"), theme, key ? { flenwheel: "go", key } : null)
}

/**
 * A page of ours over ComfyUI. @param {string} name @param {URL} url of the page @param {string} label @param {"dark"|"light"} theme
 * @param {object|null} message for the page where it is open already
 */
export function openFrame(name, url, label, theme, message = null) {
  let room = rooms.get(name)
  if (!room) rooms.set(name, (room = build(url, label, theme)))
  const frame = /** @type {HTMLIFrameElement} */ (room.firstElementChild)
  if (!room.open) room.showModal()
  const page = frame.contentDocument
  if (page?.body?.dataset.page) {
    page.documentElement.dataset.theme = theme
    if (message) frame.contentWindow?.postMessage(message, location.origin)
  }
  focus(frame)
}

function build(url, label, theme) {
  for (const [name, value] of Object.entries({ embedded: "1", theme })) url.searchParams.set(name, value)
  const frame = element("iframe", { src: url.href, title: label })
  const room = element("dialog", { class: "flw-room", "aria-label": label }, frame)
  for (const name of ["keydown", "copy", "paste", "cut", "wheel", "drop", "dragover"]) room.addEventListener(name, (event) => event.stopPropagation())
  room.addEventListener("keydown", (event) => event.key === "Escape" && room.close()) // ComfyUI prevents what the browser would do
  room.addEventListener("focus", () => focus(frame))
  frame.addEventListener("load", () => focus(frame))
  addEventListener("message", (event) => event.source === frame.contentWindow && event.data === CLOSE && room.close())
  document.body.append(room)
  return room
}

/** @param {HTMLIFrameElement} frame */
function focus(frame) {
  frame.focus()
  const page = frame.contentDocument
  const place = /** @type {HTMLElement|null|undefined} */ (page?.querySelector("#viewer:not([hidden]) #stage") ?? page?.querySelector("#grid"))
  place?.focus({ preventScroll: true })
}
