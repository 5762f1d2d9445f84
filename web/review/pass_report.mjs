/** What a pass came to: verdicts, reasons, and which instructions, editors and scores they fell on. Counted from what the page knows. */

import { element } from "./dom.mjs"
import { FACETS } from "./filters.mjs"
import { t } from "./lang.mjs"
import { reasonWord } from "./words.mjs"

/** @typedef {import("./words.mjs").Candidate} Candidate */
const TOLD = ["prompt", "editor", "loras", "band", "angle"] // facets worth a table, if they tell the images apart
const MOST_ROWS = 8

/** How the verdicts fell on each value of a facet, worst first. @param {Candidate[]} decided @param {(candidate: Candidate) => (string|false|null|undefined)[]} of */
export function verdictsBy(decided, of) {
  /** @type {Map<string, {value: string, good: number, needs_correction: number, reject: number, all: number}>} */
  const rows = new Map()
  for (const candidate of decided) {
    for (const value of of(candidate)) {
      if (!value || !candidate.label) continue
      const row = rows.get(value) ?? { value, good: 0, needs_correction: 0, reject: 0, all: 0 }
      row[candidate.label] += 1
      row.all += 1
      rows.set(value, row)
    }
  }
  return [...rows.values()].sort((a, b) => a.good / a.all - b.good / b.all || b.all - a.all)
}

/** @param {import("./store.mjs").ReviewStore} store @param {string} pace in words, or empty */
export function passReport(store, pace) {
  const { counts, candidates } = store
  const decided = candidates.filter(({ label }) => label)
  const line = t("{decided} of {total} decided: {good} good, {correct} to correct, {reject} rejected.", { decided: decided.length, total: counts.total, good: counts.good, correct: counts.needs_correction, reject: counts.reject })
  const reasons = new Map()
  for (const { reasons: given } of decided) for (const reason of given) reasons.set(reason, (reasons.get(reason) ?? 0) + 1)
  const why = [...reasons].sort((a, b) => b[1] - a[1]).map(([reason, number]) => `${reasonWord(reason)} ${number}`)
  const tables = FACETS.filter(({ name }) => TOLD.includes(name)).map(({ word, of, say = String }) => table(t(word), verdictsBy(decided, of), say))
  return element("section", { class: "report" }, element("h3", { text: t("This pass") }), element("p", { text: [line, pace].filter(Boolean).join(" ") }), why.length > 0 && element("p", { text: t("Reasons: {list}.", { list: why.join(", ") }) }), ...tables)
}

function table(title, rows, say) {
  if (rows.length < 2) return null
  const head = [title, t("Good"), t("To correct"), t("Rejected")].map((text) => element("th", { scope: "col", text }))
  const body = rows.slice(0, MOST_ROWS).map((row) => element("tr", {}, element("th", { scope: "row", text: say(row.value) }), ...["good", "needs_correction", "reject"].map((label) => element("td", { text: String(row[label]) }))))
  return element("table", { class: "coverage" }, element("tr", {}, ...head), ...body)
}
