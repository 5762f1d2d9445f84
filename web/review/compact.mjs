/**
 * The gallery inside the Review Gate: thumbnails, counts and the verdict keys, in ComfyUI's own page. The work surface is the room (room.mjs).
 *
 * Views come and go with their node (undo, tabs, another renderer); what they show lives here, once per set of candidates.
 */

import { asker, ServerError, listing, tell, unreachable } from "./api.mjs"
import { button, element, icon } from "./dom.mjs"
import { t } from "./lang.mjs"
import { COMPACT, Grid } from "./grid.mjs"
import { Outbox } from "./outbox.mjs"
import { reviewer } from "./session.mjs"
import { ReviewStore } from "./store.mjs"
import { Sync } from "./sync.mjs"
import { LABELS, wordFor } from "./words.mjs"

/** @typedef {{store: ReviewStore, outbox: Outbox, sync: Sync, ready: Promise<void>}} Desk */
/** @type {Map<string, Desk>} by set */
const desks = new Map()

/** @param {import("./api.mjs").CandidateSet} set @returns {Desk} */
function deskOf(set) {
  const name = `${set.project}/${set.stage}/${set.version}`
  const known = desks.get(name)
  if (known) return known
  const way = () => ({ reviewer: reviewer(), pass: /** @type {const} */ ("first"), blind: false })
  const outbox = new Outbox(name, ({ what, batch, way: given, events }) => tell(set, what, { reviewer: given.reviewer, pass: given.pass, batch, ...(what === "labels" && { events }) }), way)
  const store = new ReviewStore(outbox)
  const sync = new Sync(store, outbox, { ask: (part) => listing(set, way(), part), complain: (message) => store.dispatchEvent(new CustomEvent("complaint", { detail: message })), saved: () => {} })
  const desk = { store, outbox, sync, ready: outbox.open().then(() => sync.refresh()) }
  desk.ready.catch(() => desks.delete(name)) // not reachable, or gone: the next view asks again
  desks.set(name, desk)
  return desk
}

/** A broadcast of ComfyUI: some review has changed. @param {import("./api.mjs").CandidateSet & {revision: string}} review */
export function changed({ project, stage, version, revision }) {
  desks.get(`${project}/${stage}/${version}`)?.sync.look(revision)
}

export class CompactGallery {
  #stop = new AbortController()

  /**
   * @param {HTMLElement} host filled by the gallery @param {import("./api.mjs").CandidateSet} set
   * @param {{open: (key: string|null) => void, wheel: (event: WheelEvent) => void}} does `wheel`: for the canvas, while the gallery has no focus
   */
  constructor(host, set, does) {
    const { store, outbox, sync, ready } = deskOf(set)
    this.set = set
    this.store = store
    this.outbox = outbox
    this.does = does
    const listen = { signal: this.#stop.signal }
    // An input that holds the focus: every listener of ComfyUI leaves inputs alone, so its keys stay out of here and ours out there
    this.sink = element("input", { class: "sink", readonly: true, inputmode: "none", "aria-label": t("Images to decide on") })
    this.scroller = element("div", { class: "scroller" }, this.sink)
    this.counts = element("span", { class: "counts", role: "status" })
    this.saving = element("span", { class: "saving-compact" })
    this.bar = element("i")
    this.proceed = button({ class: "proceed", text: t("Continue"), hidden: true, on: { click: () => void this.#continue() } })
    const quicks = LABELS.map(({ label, word, key, icon: symbol }) => button({ class: `mini ${label}`, title: `${t(word)} (${key})`, "aria-label": t(word), on: { click: () => this.#label(label) } }, icon(symbol)))
    host.classList.add("flw", "compact")
    host.replaceChildren(element("div", { class: "head" }, this.counts, this.saving, this.proceed), element("div", { class: "line-bar", "aria-hidden": "true" }, this.bar), this.scroller, element("div", { class: "foot" }, ...quicks, element("span", { class: "hint", text: t("1 2 3 decide, U undo, Enter room") })))
    this.host = host
    this.grid = new Grid(this.scroller, store, set, { open: () => does.open(store.current), label: (label) => this.#label(label) }, { measures: COMPACT, focus: this.sink })
    store.addEventListener("change", () => this.draw(), listen)
    store.addEventListener("complaint", (/** @type {any} */ event) => (this.counts.textContent = event.detail), listen)
    outbox.addEventListener("change", () => this.draw(), listen)
    host.addEventListener("pointerdown", (event) => this.#pressed(event), listen)
    host.addEventListener("wheel", (event) => this.#wheel(event), { ...listen, passive: false })
    for (const name of ["dragenter", "dragover", "drop"]) host.addEventListener(name, (event) => (event.preventDefault(), event.stopPropagation()), listen)
    this.sink.addEventListener("keydown", (event) => this.#key(event), listen)
    this.sink.addEventListener("focus", () => host.classList.add("has-focus"), listen)
    this.sink.addEventListener("blur", () => host.classList.remove("has-focus"), listen)
    ready.then(
      () => (store.counts.undecided || store.filter !== "undecided" ? this.grid.layout() : store.choose({ filter: "all" }), this.draw()),
      (error) => (this.counts.textContent = error.message),
    )
    sync.look()
  }

  dispose() {
    this.#stop.abort()
    this.grid.dispose()
    this.host.replaceChildren()
  }

  draw() {
    const { store, outbox } = this
    if (!store.project) return
    const { total, undecided, good, needs_correction: correct, reject } = store.counts
    this.counts.textContent = undecided ? t("{undecided} of {total} to decide", { undecided, total }) : t("All {total} decided: {good} good, {correct} to correct, {reject} rejected", { total, good, correct, reject })
    this.bar.style.width = `${(100 * (total - undecided)) / Math.max(1, total)}%`
    const n = outbox.size
    const saving = { saved: "", busy: t("Saving {n}", { n }), away: t("{n} not saved yet", { n }) }[outbox.told]
    this.saving.dataset.state = outbox.state
    if (this.saving.textContent !== saving) this.saving.textContent = saving
    this.proceed.hidden = undecided > 0 || !total || outbox.size > 0
    const current = store.get(store.current)
    this.sink.setAttribute("aria-description", current ? `${current.name}, ${wordFor(current.label)}` : "")
  }

  /** Queue the graph again from the gate. */
  async #continue() {
    try {
      await tell(this.set, "continue", asker())
      this.counts.textContent = t("Queued. The graph goes on from here.")
    } catch (error) {
      if (!(error instanceof ServerError) && !unreachable(error)) throw error
      this.counts.textContent = error instanceof ServerError ? error.message : t("ComfyUI does not answer.")
    }
  }

  /** @param {import("./words.mjs").Label|null} label */
  #label(label) {
    const { store } = this
    if (!store.current) return
    store.label(store.current, label)
    if (label) store.goTo(store.nextUndecided())
  }

  #pressed(event) {
    if (event.target.closest("button, .scroller")) event.stopPropagation() // the node is not dragged, and no graph snapshot is taken
    if (event.target.closest(".card, button")) event.preventDefault()
    if (event.target.closest(".scroller")) this.sink.focus({ preventScroll: true })
  }

  /** The wheel belongs to the canvas until somebody works here. */
  #wheel(event) {
    if (event.ctrlKey || event.metaKey || document.activeElement !== this.sink) return this.does.wheel(event)
    event.stopPropagation()
    return undefined
  }

  #key(event) {
    const { store, grid } = this
    const modified = event.ctrlKey || event.metaKey
    if (event.altKey || ["Tab", "Shift", "Control", "Meta"].includes(event.key)) return
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key
    const label = LABELS.find(({ key, letter }) => !modified && (key === name || letter === name))
    const undo = modified && name === "z"
    if (modified && !undo && name !== "y") return // Ctrl+Enter still queues the graph
    event.preventDefault()
    event.stopPropagation()
    if (event.repeat && !name.startsWith("Arrow")) return
    if (label) this.#label(label.label)
    else if (name === "0") this.#label(null)
    else if ((undo && event.shiftKey) || name === "y") store.redo()
    else if (undo || name === "u") store.undo()
    else if (name === "n") store.goTo(store.nextUndecided())
    else if (name === "f") store.choose({ filter: store.filter === "undecided" ? "all" : "undecided" })
    else if (name === "Enter" || name === " ") this.does.open(store.current)
    else if (name === "Escape") this.sink.blur()
    else MOVES[name]?.(store, grid)
  }
}

const MOVES = {
  ArrowLeft: (store) => store.move(-1),
  ArrowRight: (store) => store.move(1),
  ArrowUp: (store, grid) => store.move(-grid.columns),
  ArrowDown: (store, grid) => store.move(grid.columns),
  PageUp: (store, grid) => store.move(-grid.columns * grid.page),
  PageDown: (store, grid) => store.move(grid.columns * grid.page),
  Home: (store) => store.move(-Infinity),
  End: (store) => store.move(Infinity),
}
