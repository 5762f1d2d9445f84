/**
 * FLENwheel in ComfyUI's graph: what a node has to say is shown on it, and the Review Gate leads to the review page.
 *
 * Nothing here is saved: neither in the workflow nor in the prompt. A node whose message is missing or strange stays as it is.
 */

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const OURS = "FLEN_"
const GATE = "FLEN_ReviewGate"
const TEXT_PX = 76 // four lines

/** @typedef {{project: string, stage: string, version: string, counts: {total: number, undecided: number}}} Review */

/** @type {Map<string, {review: Review, announced: boolean}>} by set: the newest this tab has heard */
const heard = new Map()
/** @type {WeakMap<object, Review>} what each gate of the graph waits for */
const waiting = new WeakMap()
/** @type {WeakMap<object, HTMLTextAreaElement>} */
const texts = new WeakMap()

const nameOf = ({ project, stage, version }) => `${project}/${stage}/${version}`

/** A review as nodes and broadcasts describe it, or null if this is none. @returns {Review|null} */
function readReview(described) {
  const { project, stage, version } = described ?? {}
  const { total, undecided } = described?.counts ?? described ?? {}
  if (![project, stage, version].every((part) => typeof part === "string") || !Number.isFinite(undecided)) return null
  return { project, stage, version, counts: { ...described.counts, total, undecided } }
}

/** Open the page of a review, in the tab it already has; without one, the list of projects. @param {Review} [review] */
function openReview(review) {
  const where = review ? `?${new URLSearchParams({ project: review.project, stage: review.stage, version: review.version })}` : ""
  window.open(api.fileURL(`/flenwheel/review${where}`), `flenwheel ${review ? nameOf(review) : ""}`)
}

/** The review a person most likely means: of this gate, else the newest that waits. */
function reviewFor(node) {
  const own = waiting.get(node)
  return own ?? [...heard.values()].map(({ review }) => review).findLast(({ counts }) => counts.undecided)
}

/** Remember a review, show its counts on its gates, and say once that it waits. @param {Review} review @param {boolean} fresh a run ended in it */
function hear(review, fresh) {
  const name = nameOf(review)
  const { total, undecided } = review.counts
  const announced = heard.get(name)?.announced ?? false
  const announce = undecided > 0 && !announced && (fresh || undecided === total)
  heard.delete(name) // a Map keeps the order of insertion; the newest belongs at the end
  heard.set(name, { review, announced: undecided > 0 && (announced || announce) })
  for (const node of app.graph?.nodes ?? []) {
    const own = node.comfyClass === GATE ? waiting.get(node) : undefined
    if (own && nameOf(own) === name) showReview(node, review)
  }
  if (announce) {
    const detail = `${undecided} of ${total} images of ${review.project} wait for you. Open them from the Review Gate.`
    app.extensionManager.toast.add({ severity: "info", summary: "FLENwheel review", detail, life: 8000 })
  }
}

/** @param {object} node a Review Gate @param {Review} review */
function showReview(node, review) {
  waiting.set(node, review)
  const { total, undecided, good, needs_correction: correct, reject } = review.counts
  const parts = good === undefined ? "" : `\n${good} good · ${correct} need correction · ${reject} rejected`
  showText(node, (undecided ? `${undecided} of ${total} images undecided` : `All ${total} images decided`) + parts)
}

/** Show a text on a node, read-only, in a widget that is made when there is something to say. */
function showText(node, text) {
  const area = texts.get(node) ?? addTextWidget(node)
  area.value = text
}

function addTextWidget(node) {
  const host = document.createElement("div")
  Object.assign(host.style, { position: "relative", width: "100%", height: "100%", minHeight: `${TEXT_PX}px` })
  const area = document.createElement("textarea")
  area.readOnly = true
  area.setAttribute("aria-label", "Result")
  Object.assign(area.style, {
    position: "absolute", inset: "0", width: "100%", height: "100%", boxSizing: "border-box", resize: "none", border: "0", borderRadius: "6px", padding: "6px 8px",
    background: "var(--comfy-input-bg, #222)", color: "var(--input-text, #ddd)", font: "12px/1.4 system-ui, sans-serif",
  })
  host.append(area)
  // Nodes 2.0 gives a row the height of its content: the text is absolute, so that a long one does not blow the node up
  const widget = node.addDOMWidget("flenwheel_text", "FLENWHEEL_TEXT", host, { serialize: false, hideOnZoom: false, margin: 6, getMinHeight: () => TEXT_PX })
  keepOut(widget)
  // the classic renderer keeps a stale width after the side panel was open (frontend 1.47)
  Object.defineProperty(widget, "width", { get: () => undefined, set() {}, configurable: true })
  texts.set(node, area)
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
  return area
}

/** `options.serialize` keeps a widget out of the prompt, `serialize` out of the workflow. */
function keepOut(widget) {
  widget.serialize = false
  widget.options = Object.assign(widget.options ?? {}, { serialize: false })
}

/** @param {object} node @param {any} output the ui part of the node's result */
function show(node, output) {
  const review = node.comfyClass === GATE ? readReview(output?.flen_review?.[0]) : null
  if (review) {
    showReview(node, review)
    return review
  }
  const text = output?.text
  if (Array.isArray(text) && text.length && text.every((part) => typeof part === "string")) showText(node, text.join("\n\n"))
  return null
}

app.registerExtension({
  name: "FLENwheel",
  commands: [{ id: "FLENwheel.Review", label: "FLENwheel: Review", icon: "pi pi-images", function: () => openReview(reviewFor({})) }],
  menuCommands: [{ path: ["FLENwheel"], commands: ["FLENwheel.Review"] }],

  setup() {
    // a broadcast reaches every tab; `executed` only the one that queued the graph
    api.addEventListener("flenwheel.review", ({ detail }) => {
      const review = readReview(detail)
      if (review) hear(review, detail.node !== undefined)
    })
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(OURS)) return
    if (node.comfyClass === GATE) keepOut(node.addWidget("button", "Open review", null, () => openReview(reviewFor(node)), { serialize: false }))
    const before = node.onExecuted
    node.onExecuted = function (output, ...rest) {
      before?.call(this, output, ...rest)
      const review = show(this, output)
      if (review) hear(review, true)
    }
    // a switch of tabs makes new nodes and keeps the outputs of the last run
    setTimeout(() => show(node, app.nodeOutputs?.[String(node.id)]))
  },
})
