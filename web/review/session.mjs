/** One reviewer's visit: who, in which pass, how fast, and where it stopped. */

import { tell, unreachable, ServerError } from "./api.mjs"
import { count, t } from "./lang.mjs"

const REVIEWER = "flenwheel.reviewer"
const PAUSE_MS = 60_000 // longer without a verdict is a break, not work
const ENOUGH = 5 // verdicts before a pace means anything
const TELL_MS = 1_500

export const reviewer = () => localStorage.getItem(REVIEWER) || "reviewer"
/** @param {string} name */
export const setReviewer = (name) => localStorage.setItem(REVIEWER, name.trim())
export const writtenReviewer = () => localStorage.getItem(REVIEWER) ?? ""

/** How many verdicts a minute of work, breaks left out. */
export class Pace {
  #verdicts = 0
  #worked = 0
  #last = 0

  /** A verdict was given. @param {number} now in ms */
  tick(now) {
    if (this.#last && now - this.#last < PAUSE_MS) {
      this.#worked += now - this.#last
      this.#verdicts += 1
    }
    this.#last = now
  }

  /** @param {number} undecided @returns {string} pace and time left in words; empty while too little is known */
  words(undecided) {
    if (this.#verdicts < ENOUGH || !this.#worked) return ""
    const each = this.#worked / this.#verdicts
    const pace = t("{n} a minute", { n: Math.max(1, Math.round(60_000 / each)) })
    if (!undecided) return pace
    const seconds = Math.max(1, Math.round((undecided * each) / 1_000))
    const minutes = Math.round(seconds / 60)
    const left = seconds < 90 ? count(seconds, "{n} second left", "{n} seconds left") : count(minutes, "{n} minute left", "{n} minutes left")
    return `${pace}, ${left}`
  }
}

/** What a reload brings back: filter, order, size, focus. Kept by the tab. */
export class Memory {
  #name
  #set
  #timer = 0

  /** @param {import("./api.mjs").CandidateSet} set @param {import("./api.mjs").Way} way */
  constructor(set, way) {
    this.#set = set
    this.way = way
    this.#name = `flenwheel.view ${set.project}/${set.stage}/${set.version} ${way.pass}${way.blind ? " blind" : ""}`
  }

  /** @returns {{shown: import("./filters.mjs").View, current: string|null, size: number, viewer: boolean}|null} */
  get kept() {
    const text = sessionStorage.getItem(this.#name)
    return text ? JSON.parse(text) : null
  }

  /** @param {import("./store.mjs").ReviewStore} store @param {{size: number, viewer: boolean}} look */
  keep({ shown, current, counts }, look) {
    sessionStorage.setItem(this.#name, JSON.stringify({ shown, current, ...look }))
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#tell(current, counts.total - counts.undecided, shown), TELL_MS)
  }

  /** The server remembers it for the next visit, from wherever. */
  async #tell(key, place, filter) {
    const { reviewer: name, pass } = this.way
    try {
      await tell(this.#set, "session", { reviewer: name, pass, key, place, filter })
    } catch (error) {
      if (!(error instanceof ServerError) && !unreachable(error)) throw error // where one stopped is a convenience
    }
  }
}

/** "You stopped at 43 of 96", and the candidate to go on with. @param {import("./store.mjs").ReviewStore} store */
export function resumeLine(store) {
  const { total, undecided, needs_correction: correct } = store.counts
  const decided = total - undecided
  if (!decided || !undecided) return ""
  const line = t("You stopped at {decided} of {total}.", { decided, total })
  return correct ? `${line} ${count(correct, "{n} needs correction.", "{n} need correction.")}` : line
}

/** The first undecided candidate from the one where the reviewer stopped. @param {import("./store.mjs").ReviewStore} store @param {string|null|undefined} key */
export function goOnFrom(store, key) {
  const from = Math.max(0, store.candidates.findIndex((candidate) => candidate.key === key))
  const around = [...store.candidates.slice(from), ...store.candidates.slice(0, from)]
  return around.find((candidate) => !candidate.label)?.key
}
