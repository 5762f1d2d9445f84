/**
 * FLENwheel in ComfyUI's graph: what a node has to say is shown on it; the Review Gate holds a small gallery; sidebar, menu and gate lead to the
 * review. What it shows lies in review/, served by our own routes.
 *
 * Of the graph only `properties.flenwheel` is saved: which review a gate waits for. A node whose message is missing or strange stays as it is.
 */

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { addBox, keepOut } from "./box.js"

const OURS = "FLEN_"
const GATE = "FLEN_ReviewGate"
const TEXT_PX = 76 // four lines
const GALLERY_PX = 300
const GALLERY_SIZE = [380, 520]
const TAB = "flenwheel"
const MONITOR = "FLEN_TrainingMonitor"
const MONITOR_PX = 420
const MONITOR_SIZE = [480, 640]
const JOBS_TAB = "flenwheel-jobs"

/** @typedef {{project: string, stage: string, version: string, revision?: string, counts: {total: number, undecided: number}}} Review */

/** @type {Map<string, {review: Review, announced: boolean}>} by set: the newest this tab has heard */
const heard = new Map()
/** @type {WeakMap<object, HTMLTextAreaElement>} */
const texts = new WeakMap()
/** @type {WeakMap<object, {host: HTMLElement, view: {dispose: () => void}|null, name: string}>} */
const galleries = new WeakMap()
/** @type {WeakMap<object, {host: HTMLElement, view: {dispose: () => void}|null, id: string}>} */
const monitors = new WeakMap()

const files = (name) => import(api.fileURL(`/flenwheel/web/review/${name}`))
const jobFiles = (name) => import(api.fileURL(`/flenwheel/web/jobs/${name}`))
const nameOf = ({ project, stage, version }) => `${project}/${stage}/${version}`
const isJob = (described) => ["project", "id"].every((part) => typeof described?.[part] === "string")
const isSet = (described) => ["project", "stage", "version"].every((part) => typeof described?.[part] === "string")

/** A review as nodes and broadcasts describe it, or null if this is none. @returns {Review|null} */
function readReview(described) {
  const { total, undecided } = described?.counts ?? described ?? {}
  if (!isSet(described) || !Number.isFinite(undecided)) return null
  const { project, stage, version, revision } = described
  return { project, stage, version, revision, counts: { ...described.counts, total, undecided } }
}

/** Whether ComfyUI's colours are light: its themes have many names. */
function theme() {
  const [red = 0, green = 0, blue = 0] = (getComputedStyle(document.body).getPropertyValue("--comfy-menu-bg").match(/[\da-f]{2}/gi) ?? []).map((part) => parseInt(part, 16))
  return red + green + blue > 384 ? "light" : "dark"
}

/** The room over the graph; without a review, the list of projects. */
async function openReview(review, key = null) {
  const { openRoom } = await files("room.mjs")
  openRoom(review ?? null, { key, theme: theme() })
}

/** The review a person most likely means: of this gate, else the newest that waits. */
function reviewFor(node) {
  const own = node?.properties?.flenwheel
  return isSet(own) ? own : [...heard.values()].map(({ review }) => review).findLast(({ counts }) => counts.undecided)
}

/** Remember a review, and say once that it waits. @param {Review} review @param {boolean} fresh a run ended in it */
function hear(review, fresh) {
  const name = nameOf(review)
  const { total, undecided } = review.counts
  const announced = heard.get(name)?.announced ?? false
  const announce = undecided > 0 && !announced && (fresh || undecided === total)
  heard.delete(name) // a Map keeps the order of insertion; the newest belongs at the end
  heard.set(name, { review, announced: undecided > 0 && (announced || announce) })
  if (announce) {
    const detail = `${undecided} of ${total} images of ${review.project} wait for you. Open them from the Review Gate.`
    app.extensionManager.toast.add({ severity: "info", summary: "FLENwheel review", detail, life: 8000 })
  }
}

/** The Jobs page over the graph. @param {{project: string, id: string}|null} job null: the newest */
async function openJobs(job) {
  const [{ openFrame }, { pageAddress }, { t }] = await Promise.all([files("room.mjs"), jobFiles("api.mjs"), files("lang.mjs")])
  openFrame("jobs", new URL(pageAddress(job)), t("FLENwheel training"), theme(), job && { flenwheel: "job", ...job })
}

/** Open the graph that shows what a LoRA does. @param {{project: string, id: string}} job */
async function tryLora(job) {
  const { scene } = await jobFiles("api.mjs")
  const { name, workflow } = await scene(job)
  for (const room of /** @type {NodeListOf<HTMLDialogElement>} */ (document.querySelectorAll("dialog.flw-room[open]"))) room.close()
  if (workflow) await app.loadGraphData(workflow, true, true, `try ${name.split("/").at(-1).replace(".safetensors", "")}`)
  else app.extensionManager.toast.add({ severity: "info", summary: "FLENwheel", detail: `Choose ${name} in a LoRA loader or LoRA Stack.`, life: 8000 })
}

/** Show a training live on its monitor. @param {object} node @param {{project: string, id: string}} job */
async function showMonitor(node, job) {
  const known = monitors.get(node) ?? { host: null, view: null, id: "" }
  if (known.id === job.id) return
  if (!known.host) {
    known.host = addBox(node, "flenwheel_monitor", "FLENWHEEL_MONITOR", MONITOR_PX)
    node.setSize([Math.max(node.size[0], MONITOR_SIZE[0]), Math.max(node.size[1], MONITOR_SIZE[1])])
  }
  known.id = job.id
  monitors.set(node, known)
  app.canvas?.setDirty(true, true)
  node.properties.flenwheel = { project: job.project, id: job.id }
  const { Monitor } = await jobFiles("monitor.mjs")
  if (known.id !== job.id || !monitors.has(node)) return
  known.view?.dispose()
  const inner = document.createElement("div")
  inner.className = "flw flw-colours"
  inner.dataset.captureWheel = "true"
  inner.addEventListener("wheel", (event) => toCanvas(event, inner), { passive: false })
  inner.addEventListener("keydown", (event) => event.stopPropagation())
  inner.tabIndex = -1
  known.host.replaceChildren(inner)
  const smoothing = node.widgets?.find(({ name }) => name === "smoothing")?.value
  known.view = new Monitor(inner, job, { compact: true, smoothing, open: () => void openJobs(job), tryIt: (name) => void tryLora(name) })
}

/** Show a text on a node, read-only, in a widget that is made when there is something to say. */
function showText(node, text) {
  const area = texts.get(node) ?? addText(node)
  area.value = text
}

function addText(node) {
  const area = document.createElement("textarea")
  area.readOnly = true
  area.setAttribute("aria-label", "Result")
  Object.assign(area.style, {
    position: "absolute", inset: "0", width: "100%", height: "100%", boxSizing: "border-box", resize: "none", border: "0", borderRadius: "6px", padding: "6px 8px",
    background: "var(--comfy-input-bg, #222)", color: "var(--input-text, #ddd)", font: "12px/1.4 system-ui, sans-serif",
  })
  addBox(node, "flenwheel_text", "FLENWHEEL_TEXT", TEXT_PX).append(area)
  texts.set(node, area)
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
  return area
}

/** Show the candidates of a review on its gate. @param {object} node @param {Review} review */
async function showGallery(node, review) {
  const { project, stage, version } = review
  const name = nameOf(review)
  const known = galleries.get(node) ?? { host: null, view: null, name: "" }
  if (known.name === name) return
  if (!known.host) {
    known.host = addBox(node, "flenwheel_review", "FLENWHEEL_REVIEW", GALLERY_PX)
    node.setSize([Math.max(node.size[0], GALLERY_SIZE[0]), Math.max(node.size[1], GALLERY_SIZE[1])])
  }
  known.name = name
  galleries.set(node, known)
  app.canvas?.setDirty(true, true) // the classic renderer places widgets when it draws
  const before = node.properties.flenwheel
  if (!before || nameOf(before) !== name) node.properties.flenwheel = { project, stage, version }
  const { CompactGallery } = await files("compact.mjs")
  if (known.name !== name || !galleries.has(node)) return
  known.view?.dispose()
  const inner = document.createElement("div")
  inner.dataset.captureWheel = "true" // Nodes 2.0 then leaves the wheel to what has the focus
  known.host.replaceChildren(inner)
  known.view = new CompactGallery(inner, { project, stage, version }, { open: (key) => void openReview(review, key), wheel: (event) => toCanvas(event, inner) })
}

/** The classic renderer does not forward the wheel over a widget; Nodes 2.0 does. */
function toCanvas(event, host) {
  if (globalThis.LiteGraph?.vueNodesMode || !host.closest(".dom-widget")) return
  event.preventDefault()
  event.stopPropagation()
  const { clientX, clientY, deltaX, deltaY, deltaMode, ctrlKey, metaKey, shiftKey } = event
  app.canvas.canvas.dispatchEvent(new WheelEvent("wheel", { clientX, clientY, deltaX, deltaY, deltaMode, ctrlKey, metaKey, shiftKey, bubbles: true, cancelable: true }))
}

/** @param {object} node @param {any} output the ui part of the node's result */
function show(node, output) {
  const review = node.comfyClass === GATE ? readReview(output?.flen_review?.[0]) : null
  if (review) {
    void showGallery(node, review)
    return review
  }
  const job = node.comfyClass === MONITOR ? output?.flen_job?.[0] : null
  if (isJob(job)) {
    void showMonitor(node, job)
    return null
  }
  const text = output?.text
  if (Array.isArray(text) && text.length && text.every((part) => typeof part === "string")) showText(node, text.join("\n\n"))
  return null
}

/** How many images wait, on the sidebar's icon. */
function showBadge(number) {
  const tab = app.extensionManager.sidebarTab?.sidebarTabs?.find(({ id }) => id === TAB)
  if (tab) tab.iconBadge = () => (number ? String(number) : null)
}

function addSidebar() {
  const tabs = app.extensionManager.sidebarTab ?? app.extensionManager
  let redraw = null
  tabs.registerSidebarTab({
    id: TAB,
    icon: "pi pi-images",
    title: "Review",
    tooltip: "FLENwheel: images that wait for your verdict",
    type: "custom",
    iconBadge: () => null,
    async render(host) {
      const root = document.createElement("div") // the host is shared with other tabs and may not be on the page yet
      root.style.height = "100%"
      host.style.height = "100%"
      host.replaceChildren(root)
      const { sidebar } = await files("sidebar.mjs")
      redraw = sidebar(root, (set) => void openReview(set))
    },
    destroy() {
      redraw = null
    },
  })
  return () => redraw?.()
}

/** The trainings, in the sidebar. */
function addJobsSidebar() {
  const tabs = app.extensionManager.sidebarTab ?? app.extensionManager
  let list = null
  tabs.registerSidebarTab({
    id: JOBS_TAB,
    icon: "pi pi-chart-line",
    title: "Training",
    tooltip: "FLENwheel: trainings, how far they are, and what waits",
    type: "custom",
    iconBadge: () => null,
    async render(host) {
      list?.dispose()
      const root = document.createElement("div")
      root.style.height = "100%"
      host.style.height = "100%"
      host.replaceChildren(root)
      root.className = "flw flw-side"
      const { jobList } = await jobFiles("list.mjs")
      list = jobList(root, { open: (job) => void openJobs(job) })
    },
    destroy() {
      list?.dispose()
      list = null
    },
  })
}

app.registerExtension({
  name: "FLENwheel",
  commands: [{ id: "FLENwheel.Review", label: "FLENwheel: Review", icon: "pi pi-images", function: () => void openReview(reviewFor(null)) }, { id: "FLENwheel.Training", label: "FLENwheel: Training", icon: "pi pi-chart-line", function: () => void openJobs(null) }],
  keybindings: [{ commandId: "FLENwheel.Review", combo: { key: "r", alt: true, shift: true } }],
  menuCommands: [{ path: ["FLENwheel"], commands: ["FLENwheel.Review", "FLENwheel.Training"] }],

  async setup() {
    for (const name of ["review/grid.css", "review/compact.css", "jobs/jobs.css"]) {
      document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: api.fileURL(`/flenwheel/web/${name}`) }))
    }
    const redraw = addSidebar()
    addJobsSidebar()
    addEventListener("message", ({ data, origin }) => origin === location.origin && data?.flenwheel === "try" && isJob(data) && void tryLora(data))
    api.addEventListener("flenwheel.waits", ({ detail }) => {
      const told = `A training of ${detail?.project} has the graphics card. ComfyUI goes on by itself when it is given back; the Training tab lets it go on now.`
      app.extensionManager.toast.add({ severity: "info", summary: "FLENwheel: the queue waits", detail: told, life: 12000 })
    })
    // a broadcast reaches every tab; `executed` only the one that queued the graph
    api.addEventListener("flenwheel.review", async ({ detail }) => {
      const review = readReview(detail)
      if (!review) return
      hear(review, detail.node !== undefined)
      if (Number.isFinite(detail.undecided_total)) showBadge(detail.undecided_total)
      redraw()
      const { changed } = await files("compact.mjs")
      changed(detail)
    })
    const [{ learn }, { ask }] = await Promise.all([files("lang.mjs"), files("api.mjs")])
    await learn(ask)
    const { undecidedTotal } = await files("sidebar.mjs")
    await undecidedTotal().then(showBadge, () => {}) // the next broadcast tells
  },

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(OURS)) return
    if (node.comfyClass === GATE) keepOut(node.addWidget("button", "Open review", null, () => void openReview(reviewFor(node)), { serialize: false }))
    const executed = node.onExecuted
    node.onExecuted = function (output, ...rest) {
      executed?.call(this, output, ...rest)
      const review = show(this, output)
      if (review) hear(review, true)
    }
    const removed = node.onRemoved
    node.onRemoved = function (...rest) {
      galleries.get(this)?.view?.dispose()
      galleries.delete(this)
      monitors.get(this)?.view?.dispose()
      monitors.delete(this)
      return removed?.apply(this, rest)
    }
    // a switch of tabs makes new nodes and keeps the outputs of the last run; a reload keeps what is in the workflow
    setTimeout(() => {
      if (node.comfyClass === MONITOR && isJob(node.properties?.flenwheel)) void showMonitor(node, node.properties.flenwheel)
      if (!show(node, app.nodeOutputs?.[String(node.id)]) && node.comfyClass === GATE && isSet(node.properties?.flenwheel)) void showGallery(node, node.properties.flenwheel)
    })
  },
})
