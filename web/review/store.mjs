/** What the page knows: the server's candidates with the verdicts that are still on their way laid over them. No DOM. */

import { FIRST_VIEW, ORDERS, matcher } from "./filters.mjs"
import { ruleWord, wantsReasons } from "./words.mjs"

/** @typedef {import("./words.mjs").Candidate} Candidate @typedef {import("./words.mjs").Verdict} Verdict @typedef {import("./filters.mjs").View} View */
/** What undo takes back at once: one verdict, or all that were given together. @typedef {{batch: string, parts: {key: string, before: Verdict, after: Verdict, agrees?: boolean}[]}} Step `agrees`: with what a rule or sorted files decided, which becomes a verdict given here */
/** @typedef {{total: number, undecided: number, good: number, needs_correction: number, reject: number}} Counts */
/** A step of an earlier visit, which only the server remembers. @typedef {{batch: string, count: number, label: import("./words.mjs").Label|null, name: string}} RemoteStep */

/** @param {Verdict} verdict @returns {Verdict} */
export const verdictOf = ({ label, reasons, note, answers }) => ({ label, reasons: [...reasons], note, ...(answers && { answers: { ...answers } }) })
const NONE = { total: 0, undecided: 0, good: 0, needs_correction: 0, reject: 0 }
const same = (a, b) =>
  a.label === b.label && a.note === b.note && a.reasons.join() === b.reasons.join() && JSON.stringify(a.answers ?? {}) === JSON.stringify(b.answers ?? {})

export class ReviewStore extends EventTarget {
  /** @type {Candidate[]} all of them, in file order */
  candidates = []
  /** @type {Map<string, Candidate>} */
  #byKey = new Map()
  /** @type {Candidate[]} what the grid shows; a verdict does not change it, so nothing moves under the reviewer's hand */
  view = []
  /** @type {View} */
  shown = FIRST_VIEW
  /** @type {string|null} key of the candidate the keys act on */
  current = null
  /** @type {Set<string>} keys chosen for a verdict on all of them */
  selected = new Set()
  #anchor = 0
  /** @type {Step[]} */
  #done = []
  /** @type {Step[]} */
  #undone = []
  #asking = false // the server turns a step of an earlier visit
  /** @type {("undo"|"redo")[]} asked for while it does */
  #owed = []
  #outbox
  /** @type {Counts|null} counted once per change */
  #counts = null
  /** @type {Counts} of what the server has beside `candidates`, while only the first are here */
  #beyond = NONE

  /** @param {import("./outbox.mjs").Outbox} outbox */
  constructor(outbox) {
    super()
    this.#outbox = outbox
  }

  get filter() {
    return this.shown.filter
  }

  get order() {
    return this.shown.order
  }

  /** Whether more candidates are on their way than are here. */
  get incomplete() {
    return this.#beyond !== NONE
  }

  /** Take the server's answer. The first one fills the view, a later one keeps it and adds what is new. */
  load({ items, partial, more, ...state }) {
    const first = !this.project
    this.#counts = null
    this.state = state
    this.project = state.project
    this.reasons = state.reasons
    if (partial) this.#merge(items)
    else this.candidates = items
    this.#byKey = new Map(this.candidates.map((candidate) => [candidate.key, candidate]))
    this.#beyond = more ? countsOf(items, state.counts, -1) : NONE
    for (const { key, ...verdict } of this.#outbox.events) Object.assign(this.#byKey.get(key) ?? {}, verdictOf(verdict), { origin: "person" })
    for (const key of this.selected) if (!this.#byKey.has(key)) this.selected.delete(key)
    if (first) return this.choose({})
    this.#refill()
  }

  /** Only what has changed was sent. @param {Candidate[]} items */
  #merge(items) {
    const changed = new Map(items.map((candidate) => [candidate.key, candidate]))
    this.candidates = this.candidates.map((candidate) => changed.get(candidate.key) ?? candidate)
    this.candidates.push(...items.filter(({ key }) => !this.#byKey.has(key)))
  }

  /** What the server says about some candidates, as the answer to a step. @param {(Partial<Candidate> & {key: string})[]} changes */
  update(changes) {
    const waiting = new Set(this.#outbox.events.map(({ key }) => key))
    for (const { key, ...change } of changes) if (!waiting.has(key)) Object.assign(this.get(key) ?? {}, change)
    if (changes.length) this.#changed("verdicts", changes.length === 1 ? changes[0].key : undefined)
  }

  /** Keep what is shown, and `key` with it. @param {string} [key] */
  #refill(key) {
    const shown = new Set([...this.view.map((candidate) => candidate.key), key])
    const place = this.position
    this.#fill((candidate) => shown.has(candidate.key), place)
    this.#changed("view")
  }

  /** Choose what is shown, and in which order. @param {Partial<View>} choice @param {string|null} [current] */
  choose(choice, current = this.current) {
    this.shown = { ...this.shown, ...choice }
    this.current = current
    this.selected.clear()
    this.#fill(() => false)
    this.#changed("view")
  }

  /** @param {(candidate: Candidate) => boolean} stays although the filter no longer holds @param {number} [place] to go to where the current one is gone */
  #fill(stays, place = 0) {
    const holds = matcher(this.shown)
    const compare = ORDERS.find((known) => known.name === this.order)?.compare
    this.view = this.candidates.filter((candidate) => holds(candidate) || stays(candidate))
    if (compare) this.view.sort(compare) // stable: equals stay in file order
    if (!this.view.some((candidate) => candidate.key === this.current)) this.current = this.view[Math.max(0, Math.min(place, this.view.length - 1))]?.key ?? null
  }

  /** How many are shown although the filter no longer holds for them. */
  get stale() {
    const holds = matcher(this.shown)
    return this.view.filter((candidate) => !holds(candidate)).length
  }

  /** @returns {Counts} */
  get counts() {
    return (this.#counts ??= countsOf(this.candidates, this.#beyond, 1))
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
    if (key === undefined || key === this.current || !this.get(key)) return
    if (!this.view.some((candidate) => candidate.key === key)) this.#refill(key)
    this.current = key
    this.#anchor = this.position
    this.#changed("current")
  }

  /** Move within the view; it ends at both ends. @param {number} by @param {boolean} [selecting] from where this began up to here */
  move(by, selecting = false) {
    const last = this.view.length - 1
    if (last < 0) return
    const anchor = this.#anchor
    const to = Math.max(0, Math.min(last, this.position + by))
    if (!selecting) return this.goTo(this.view[to].key)
    this.current = this.view[to].key
    this.#selectBetween(anchor, to)
  }

  /** Everything from where the selection began up to this one. @param {string} key */
  selectTo(key) {
    const to = this.view.findIndex((candidate) => candidate.key === key)
    if (to < 0) return
    this.current = key
    this.#selectBetween(this.#anchor, to)
  }

  #selectBetween(a, b) {
    this.selected = new Set(this.view.slice(Math.min(a, b), Math.max(a, b) + 1).map((candidate) => candidate.key))
    this.#changed("current")
  }

  /** @param {string|null} key */
  toggleSelected(key) {
    if (key === null) return
    if (!this.selected.delete(key)) this.selected.add(key)
    this.#changed("current")
  }

  /** @param {boolean} all everything shown, or nothing */
  select(all) {
    this.selected = new Set(all ? this.view.map((candidate) => candidate.key) : [])
    this.#changed("current")
  }

  /** The selected candidates, in the order of the view. */
  get selection() {
    return this.view.filter((candidate) => this.selected.has(candidate.key))
  }

  /** The undecided candidate after the current one, from the start again at the end. @returns {string|undefined} */
  nextUndecided() {
    const from = this.position + 1
    const around = [...this.view.slice(from), ...this.view.slice(0, from)]
    return around.find((candidate) => !candidate.label && candidate.key !== this.current)?.key
  }

  /** Give a verdict, or withdraw it with null. @param {string} key @param {import("./words.mjs").Label|null} label @param {string[]} [reasons] @param {Record<string, boolean>} [answers] */
  label(key, label, reasons = [], answers) {
    this.labelEach([{ key, label, reasons, answers }])
  }

  /** Several verdicts as one step: undo takes them back together. @param {{key: string, label: import("./words.mjs").Label|null, reasons?: string[], answers?: Record<string, boolean>}[]} verdicts */
  labelEach(verdicts) {
    const parts = verdicts.flatMap(({ key, label, reasons = [], answers }) => {
      const candidate = this.get(key)
      if (!candidate) return []
      const before = verdictOf(candidate)
      const why = wantsReasons({ label }) ? [...new Set([...candidate.reasons, ...reasons])] : []
      return [{ key, before, after: { ...before, label, reasons: why, ...(answers && { answers }) }, agrees: Boolean(ruleWord(candidate)) }]
    })
    this.#decide(parts)
  }

  /** Reasons belong to a verdict that something is wrong. @param {string} key @param {string} reason @returns {boolean} whether it had one */
  toggleReason(key, reason) {
    const candidate = this.get(key)
    if (!candidate || !wantsReasons(candidate)) return false
    const chosen = new Set(candidate.reasons)
    if (!chosen.delete(reason)) chosen.add(reason)
    this.#decide([{ key, before: verdictOf(candidate), after: { ...verdictOf(candidate), reasons: this.reasons.filter((known) => chosen.has(known)) } }])
    return true
  }

  /** @param {string} key @param {string} note */
  note(key, note) {
    const candidate = this.get(key)
    if (candidate) this.#decide([{ key, before: verdictOf(candidate), after: { ...verdictOf(candidate), note: note.trim() } }])
  }

  /** @param {string} key @param {Record<string, boolean>} answers of the strict pass */
  answer(key, answers) {
    const candidate = this.get(key)
    if (candidate) this.#decide([{ key, before: verdictOf(candidate), after: { ...verdictOf(candidate), answers } }])
  }

  /** What the next undo takes back: of this visit, else of an earlier one. @returns {Step|RemoteStep|null} */
  get undoable() {
    return this.#done.at(-1) ?? (this.#own ? null : (this.state?.undo ?? null))
  }

  /** @returns {Step|RemoteStep|null} */
  get redoable() {
    return this.#undone.at(-1) ?? (this.#own ? null : (this.state?.redo ?? null))
  }

  /** Whether steps of this visit are still on their way: what the server remembers is older than what the next undo means. */
  get #own() {
    return this.#outbox.size > 0
  }

  /** Take the last step back, as new entries of the history, and go there. */
  undo() {
    this.#turn("undo", this.#done, this.#undone, "before")
  }

  redo() {
    this.#turn("redo", this.#undone, this.#done, "after")
  }

  /** @param {"undo"|"redo"} what @param {Step[]} from @param {Step[]} to @param {"before"|"after"} side */
  #turn(what, from, to, side) {
    const step = from.pop()
    if (!step) return this.#turnRemote(what)
    to.push(step)
    const there = step.parts.filter(({ key }) => this.get(key)).map((part) => ({ key: part.key, verdict: part[side] }))
    this.#outbox.turn(what, step.batch, there.map(({ key, verdict }) => ({ key, ...verdictOf(verdict) })))
    this.#lay(there)
    this.#goBackTo(there[0]?.key)
  }

  /** A step of an earlier visit: only the server knows what was before. @param {"undo"|"redo"} what */
  #turnRemote(what) {
    const step = what === "undo" ? this.undoable : this.redoable
    if (!step && this.#asking) this.#owed.push(what)
    if (!step || !this.state) return
    this.#asking = true
    this.state[what] = null // until the server names the next one
    this.#outbox.turn(what, step.batch, [])
    this.#changed("verdicts")
  }

  /** The server has named the next steps: do what was asked for meanwhile. @param {boolean} [refused] then forget it */
  answered(refused = false) {
    this.#asking = false
    if (refused) this.#owed = []
    const what = this.#owed.shift()
    if (what) this.#turnRemote(what)
  }

  /** @param {string|undefined} key */
  #goBackTo(key) {
    if (key === undefined) return
    this.selected.clear()
    this.goTo(key)
    this.#changed("current")
  }

  /** The server has turned a step of an earlier visit. @param {string[]} keys */
  turned(keys) {
    this.#goBackTo(keys.find((key) => this.get(key)))
  }

  /** @param {Step["parts"]} parts */
  #decide(parts) {
    const changes = parts.filter(({ before, after, agrees }) => !same(before, after) || agrees)
    if (!changes.length) return
    const batch = this.#outbox.add(changes.map(({ key, after }) => ({ key, ...verdictOf(after) })))
    this.#done.push({ batch, parts: changes })
    this.#undone = []
    if (this.state) this.state.redo = null
    this.#lay(changes.map(({ key, after }) => ({ key, verdict: after })))
  }

  /** Show verdicts at once, before the server has them. */
  #lay(decisions) {
    this.#counts = null
    for (const { key, verdict } of decisions) Object.assign(this.get(key) ?? {}, verdictOf(verdict), { origin: verdict.label ? "person" : null })
    if (decisions.length === 1) this.#changed("verdict", decisions[0].key)
    else if (decisions.length) this.#changed("verdicts")
  }

  /** @param {"view"|"current"|"verdict"|"verdicts"} what "verdict": one was given here @param {string} [key] the only one that has changed */
  #changed(what, key) {
    this.#counts = null
    this.dispatchEvent(new CustomEvent("change", { detail: { what, key } }))
  }
}

/** Candidates by label, added to or taken from others. @param {Candidate[]} candidates @param {Counts} others @param {1|-1} sign @returns {Counts} */
function countsOf(candidates, others, sign) {
  const counts = { ...others }
  counts.total += sign * candidates.length
  for (const { label } of candidates) counts[label ?? "undecided"] += sign
  return counts
}
