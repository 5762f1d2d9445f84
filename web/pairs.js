/**
 * The panel of paired datasets on the node Load Paired Dataset: the page /flenwheel/pairs in a frame, so that neither hears the other's keys,
 * wheel or drops. Which set it shows is the node's widget `name`; nothing of it is saved in the workflow.
 */

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const NODE = "FLEN_LoadPairedDataset"
const PANEL_PX = 360
const SIZE = [720, 860]

const address = (name, embedded) => api.fileURL(`/flenwheel/pairs?${new URLSearchParams({ set: name, theme: theme(), ...(embedded ? { embedded: "1" } : {}) })}`)

/** Whether ComfyUI's colours are light: its themes have many names. */
function theme() {
  const [red = 0, green = 0, blue = 0] = (getComputedStyle(document.body).getPropertyValue("--comfy-menu-bg").match(/[\da-f]{2}/gi) ?? []).map((part) => parseInt(part, 16))
  return red + green + blue > 384 ? "light" : "dark"
}

/** The large view over the graph. @param {string} name */
function openLarge(name) {
  const frame = Object.assign(document.createElement("iframe"), { src: address(name, false), title: "FLENwheel pairs" })
  const dialog = document.createElement("dialog")
  Object.assign(dialog.style, { width: "96vw", height: "94vh", maxWidth: "none", maxHeight: "none", padding: "0", border: "0", borderRadius: "12px", overflow: "hidden" })
  Object.assign(frame.style, { width: "100%", height: "100%", border: "0", display: "block" })
  dialog.setAttribute("aria-label", "FLENwheel pairs")
  const close = Object.assign(document.createElement("button"), { textContent: "×", title: "Close", type: "button" })
  Object.assign(close.style, { position: "absolute", top: "4px", right: "6px", width: "28px", height: "28px", border: "0", borderRadius: "14px", background: "#0006", color: "#fff", cursor: "pointer" })
  close.addEventListener("click", () => dialog.close())
  dialog.append(frame, close)
  for (const kind of ["keydown", "copy", "paste", "cut", "wheel", "drop", "dragover"]) dialog.addEventListener(kind, (event) => event.stopPropagation())
  dialog.addEventListener("keydown", (event) => event.key === "Escape" && dialog.close()) // ComfyUI prevents what the browser would do
  dialog.addEventListener("close", () => dialog.remove())
  document.body.append(dialog)
  dialog.showModal()
}

/** @param {any} node */
function addPanel(node) {
  const named = node.widgets?.find(({ name }) => name === "name")
  if (!named) return
  const folders = node.widgets.filter(({ name }) => ["target", "control_1", "control_2", "control_3"].includes(name))
  const host = document.createElement("div")
  Object.assign(host.style, { position: "relative", width: "100%", height: "100%", minHeight: `${PANEL_PX}px` })
  const frame = Object.assign(document.createElement("iframe"), { title: "FLENwheel pairs" })
  Object.assign(frame.style, { position: "absolute", inset: "0", width: "100%", height: "100%", border: "0", borderRadius: "8px", colorScheme: "normal" })
  const note = document.createElement("p")
  Object.assign(note.style, { position: "absolute", inset: "0", margin: "0", display: "grid", placeContent: "center", textAlign: "center", padding: "24px", borderRadius: "8px", background: "var(--comfy-input-bg, #222)", color: "var(--input-text, #ddd)" })
  note.textContent = "This node reads the folders named above. Empty them to build a set here, by dropping files."
  host.append(frame, note)
  const large = node.addWidget("button", "Open the pairs panel", null, () => openLarge(named.value), { serialize: false })
  const panel = node.addDOMWidget("flenwheel_pairs", "FLENWHEEL_PAIRS", host, { serialize: false, hideOnZoom: false, margin: 6, getMinHeight: () => PANEL_PX })
  for (const widget of [large, panel]) {
    widget.serialize = false
    widget.options = Object.assign(widget.options ?? {}, { serialize: false })
  }
  // the classic renderer keeps a stale width after the side panel was open (frontend 1.47)
  Object.defineProperty(panel, "width", { get: () => undefined, set() {}, configurable: true })
  let shown = ""
  const update = () => {
    const reads = folders.some(({ value }) => String(value ?? "").trim())
    note.hidden = !reads
    note.style.display = reads ? "grid" : "none"
    frame.hidden = reads
    const wanted = reads ? "" : String(named.value ?? "").trim()
    if (wanted && wanted !== shown) {
      shown = wanted
      frame.src = address(wanted, true)
    }
  }
  for (const widget of [named, ...folders]) {
    const { callback } = widget
    widget.callback = function (...values) {
      callback?.apply(this, values)
      setTimeout(update)
    }
  }
  node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])])
  return update
}

app.registerExtension({
  name: "FLENwheel.pairs",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const update = addPanel(node)
    if (update) setTimeout(update) // after the workflow's values are in
  },
})
