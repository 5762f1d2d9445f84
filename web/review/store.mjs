/** What the page knows: the server's candidates with the verdicts that are still on their way laid over them. No DOM. */

import { FILTERS, ORDERS, wantsReasons } from "./words.mjs"

/** @typedef {import("./words.mjs").Candidate} Candidate @typedef {import("./words.mjs").Verdict} Verdict */

/** @param {Verdict} verdict @returns {Verdict} */
const verdictOf = ({ label, reasons, note }) => ({ label, reasons: [...reasons], note })
const same = (a, b) => a.label === b.label && a.note === b.note && a.reasons.join() === b.reasons.join()

export class ReviewStore extends EventTarget {
  /** @type {Candidate[]} all of them, in file order */
  candidates = []
  /** @type {Map<string, Candidate>} */
  #byKey = new Map()
  /** @type {Candidate[]} what the grid shows; a verdict does not change it, so nothing moves under the reviewer's hand */
  view = []
  filter = "undecided"
  order = "file"
  /** @type {string|null} key of the candidate the keys act on */
  current = null
  /** @type {{key: string, before: Verdict, what: Verdict}[]} */
  #done = []
  #outbox

  /** @param {import("./outbox.mjs").Outbox} outbox */
  constructor(outbox) {
    super()
    this.#outbox = outbox
  }

  /** Take the server's answer. The first one fills the view, a later one keeps it and adds what is new. */
  load({ items, project, reasons }) {
    const first = !this.project
    this.project = project
    this.reasons = reasons
    this.candidates = items
    this.#byKey = new Map(items.map((candidate) => [candidate.key, candidate]))
    for (const { key, ...verdict } of this.#outbox.events) Object.assign(this.#byKey.get(key) ?? {}, verdict, { origin: "person" })
    if (first) return this.choose({})
    this.#refill()
  }

  /** Keep what is shown, and `key` with it. @param {string} [key] */
  #refill(key) {
    const shown = new Set([...this.view.map((candidate) => candidate.key), key])
    this.#fill((candidate) => shown.has(candidate.key))
    this.#changed("view")
  }

  /** Choose what is shown, and in which order. @param {{filter?: string, order?: string}} choice */
  choose({ filter = this.filter, order = this.order }) {
    Object.assign(this, { filter, order })
    this.#fill(() => false)
    this.#changed("view")
  }

  /** @param {(candidate: Candidate) => boolean} stays although the filter no longer holds */
  #fill(stays) {
    const holds = FILTERS.find((known) => known.name === this.filter)?.holds ?? (() => true)
    const compare = ORDERS.find((known) => known.name === this.order)?.compare
    this.view = this.candidates.filter((candidate) => holds(candidate) || stays(candidate))
    if (compare) this.view.sort(compare) // stable: equals stay in file order
    if (!this.view.some((candidate) => candidate.key === this.current)) this.current = this.view[0]?.key ?? null
  }

  /** How many are shown although the filter no longer holds for them. */
  get stale() {
    const holds = FILTERS.find((known) => known.name === this.filter)?.holds
    return this.view.filter((candidate) => holds && !holds(candidate)).length
  }

  /** @returns {{total: number, undecided: number, good: number, needs_correction: number, reject: number}} */
  get counts() {
    const counts = { total: this.candidates.length, undecided: 0, good: 0, needs_correction: 0, reject: 0 }
    for (const { label } of this.candidates) counts[label ?? "undecided"] += 1
    return counts
  }

  /** @param {string|null} key @returns {Candidate|undefined} */
  get(key) {
    return key === null ? undefined : this.#byKey.get(key)
  }

  get position() {
    return this.view.findIndex((candidate) => candidate.key === this.current)
  }

  /** @param {string|undefined} key */
  goTo(key) {
    if (key === undefined || key === this.current) return
    this.current = key
    this.#changed("current")
  }

  /** Move within the view; it ends at both ends. @param {number} by */
  move(by) {
    const last = this.view.length - 1
    if (last >= 0) this.goTo(this.view[Math.max(0, Math.min(last, this.position + by))].key)
  }

  /** The undecided candidate after the current one, from the start again at the end. @returns {string|undefined} */
  nextUndecided() {
    const from = this.position + 1
    const around = [...this.view.slice(from), ...this.view.slice(0, from)]
    return around.find((candidate) => !candidate.label && candidate.key !== this.current)?.key
  }

  /** Give a verdict, or withdraw it with null. @param {string} key @param {import("./words.mjs").Label|null} label */
  label(key, label) {
    const candidate = this.get(key)
    if (candidate) this.#decide(candidate, { label, reasons: wantsReasons({ label }) ? candidate.reasons : [], note: candidate.note })
  }

  /** Reasons belong to a verdict that something is wrong. @param {string} key @param {string} reason @returns {boolean} whether it had one */
  toggleReason(key, reason) {
    const candidate = this.get(key)
    if (!candidate || !wantsReasons(candidate)) return false
    const chosen = new Set(candidate.reasons)
    if (!chosen.delete(reason)) chosen.add(reason)
    this.#decide(candidate, { ...verdictOf(candidate), reasons: this.reasons.filter((known) => chosen.has(known)) })
    return true
  }

  /** @param {string} key @param {string} note */
  note(key, note) {
    const candidate = this.get(key)
    if (candidate) this.#decide(candidate, { ...verdictOf(candidate), note: note.trim() })
  }

  /** What the next undo takes back. */
  get undoable() {
    return this.#done.at(-1)
  }

  /** Take the last step back, as a new entry of the history, and go there. */
  undo() {
    const step = this.#done.pop()
    const candidate = step && this.get(step.key)
    if (!candidate) return
    this.#record(candidate, step.before)
    if (!this.view.includes(candidate)) this.#refill(candidate.key)
    this.goTo(candidate.key)
  }

  #decide(candidate, verdict) {
    if (same(candidate, verdict)) return
    this.#done.push({ key: candidate.key, before: verdictOf(candidate), what: verdict })
    this.#record(candidate, verdict)
  }

  #record(candidate, verdict) {
    this.#outbox.add({ key: candidate.key, ...verdictOf(verdict) })
    Object.assign(candidate, verdictOf(verdict), { origin: verdict.label ? "person" : null })
    this.#changed("verdict", candidate.key)
  }

  /** @param {"view"|"current"|"verdict"} what @param {string} [key] */
  #changed(what, key) {
    this.dispatchEvent(new CustomEvent("change", { detail: { what, key } }))
  }
}
