/** Which candidates are shown, and in which order. Pure: no DOM, no state. */

import { mark, t } from "./lang.mjs"
import { reasonWord, similarityWords } from "./words.mjs"

/** @typedef {import("./words.mjs").Candidate} Candidate */
/**
 * What is shown: a filter, an order, a value for some facets, and words to look for.
 * @typedef {{filter: string, order: string, facets: Record<string, string>, search: string}} View
 */

/** @type {View} */
export const FIRST_VIEW = { filter: "undecided", order: "file", facets: {}, search: "" }

/** @type {{name: string, word: string, holds: (candidate: Candidate) => boolean, always?: boolean}[]} */
export const FILTERS = [
  { name: "undecided", word: mark("Undecided"), holds: (candidate) => !candidate.label, always: true },
  { name: "all", word: mark("All"), holds: () => true, always: true },
  { name: "good", word: mark("Good"), holds: (candidate) => candidate.label === "good", always: true },
  { name: "needs_correction", word: mark("Needs correction"), holds: (candidate) => candidate.label === "needs_correction", always: true },
  { name: "reject", word: mark("Reject"), holds: (candidate) => candidate.label === "reject", always: true },
  { name: "unmeasured", word: mark("Not measurable"), holds: ({ similarity, state }) => (similarity ?? null) === null && Boolean(state) },
  { name: "suggested", word: mark("Suggested"), holds: ({ suggestion, label }) => Boolean(suggestion) && !label },
  { name: "disagree", word: mark("You and the score disagree"), holds: ({ disagreement }) => Boolean(disagreement) },
  { name: "corrected", word: mark("Repaired"), holds: ({ corrections }) => Boolean(corrections?.length) },
  { name: "sample", word: mark("Manual sample"), holds: ({ sample }) => sample },
]

/** @param {Candidate} candidate */
export const lorasOf = ({ loras }) => (loras ?? []).map(({ name }) => name).join(" + ")

/** One question a candidate has one answer to (or several, or none). @type {{name: string, word: string, of: (candidate: Candidate) => (string|false|null|undefined)[], say?: (value: string) => string}[]} */
export const FACETS = [
  { name: "reason", word: mark("Reason"), of: ({ reasons }) => reasons, say: reasonWord },
  { name: "prompt", word: mark("Prompt"), of: ({ template, prompt }) => [template || prompt] },
  { name: "source", word: mark("Photograph"), of: ({ source }) => [source?.name] },
  { name: "band", word: mark("Similarity"), of: (candidate) => [similarityWords(candidate).word] },
  { name: "editor", word: mark("Editor"), of: ({ editor }) => [editor] },
  { name: "loras", word: mark("LoRA"), of: (candidate) => [lorasOf(candidate)] },
  { name: "angle", word: mark("Angle"), of: ({ angle }) => [angle] },
  { name: "expression", word: mark("Expression"), of: ({ expression }) => [expression] },
  { name: "generation", word: mark("Generation"), of: ({ generation }) => [generation ? String(generation) : null], say: (value) => t("generation {n}", { n: value }) },
  { name: "lap", word: mark("Lap"), of: ({ lap }) => [lap ? String(lap) : null] },
  { name: "origin", word: mark("Decided by"), of: ({ origin }) => [origin], say: (value) => t(ORIGINS[value] ?? value) },
]
export const ORIGINS = { person: mark("a person"), policy: mark("a rule"), folder: mark("sorting files") }

/** The facets that tell these candidates apart, with the number of each value, most frequent first. @param {Candidate[]} candidates */
export function facetsOf(candidates) {
  return FACETS.map((facet) => {
    const counts = new Map()
    for (const candidate of candidates) for (const value of facet.of(candidate)) if (value) counts.set(value, (counts.get(value) ?? 0) + 1)
    return { ...facet, values: [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0], undefined, { numeric: true })) }
  }).filter(({ values }) => values.length > 1 || (values.length === 1 && values[0][1] < candidates.length))
}

const LOOK_CLOSELY = 0.6 // about where strangers begin; the doubtful lie around it
const doubt = ({ similarity }) => ((similarity ?? null) === null ? 0 : Math.abs(similarity - LOOK_CLOSELY))
const byName = (a, b) => (a.name ?? "").localeCompare(b.name ?? "", undefined, { numeric: true })

/** @type {{name: string, word: string, compare: ((a: Candidate, b: Candidate) => number)|null}[]} null keeps the order of the files. */
export const ORDERS = [
  { name: "file", word: mark("File order"), compare: null },
  { name: "doubt", word: mark("Most doubtful first"), compare: (a, b) => doubt(a) - doubt(b) },
  { name: "similarity", word: mark("Similarity, lowest first"), compare: (a, b) => (a.similarity ?? -1) - (b.similarity ?? -1) },
  { name: "best", word: mark("Similarity, highest first"), compare: (a, b) => (b.similarity ?? -1) - (a.similarity ?? -1) },
  { name: "prompt", word: mark("By prompt"), compare: (a, b) => (a.template ?? a.prompt ?? "").localeCompare(b.template ?? b.prompt ?? "") || byName(a, b) },
  { name: "source", word: mark("By photograph"), compare: (a, b) => (a.source?.name ?? "").localeCompare(b.source?.name ?? "", undefined, { numeric: true }) || byName(a, b) },
]

/** @param {View} view @returns {(candidate: Candidate) => boolean} */
export function matcher({ filter, facets, search }) {
  const holds = FILTERS.find((known) => known.name === filter)?.holds ?? (() => true)
  const chosen = FACETS.filter(({ name }) => facets[name])
  const words = search.toLowerCase().split(/\s+/).filter(Boolean)
  return (candidate) => {
    if (!holds(candidate) || !chosen.every(({ name, of }) => of(candidate).includes(facets[name]))) return false
    if (!words.length) return true
    const text = [candidate.name, candidate.prompt, candidate.caption, candidate.note, candidate.source?.name].join(" ").toLowerCase()
    return words.every((word) => text.includes(word))
  }
}

/** Candidates made from the same photograph, and those with the same instruction. @param {Candidate[]} candidates @param {Candidate} one */
export function siblings(candidates, one) {
  const instruction = (/** @type {Candidate} */ { template, prompt }) => template || prompt
  const others = candidates.filter(({ key }) => key !== one.key)
  return {
    source: one.source ? others.filter(({ source }) => source?.key === one.source?.key) : [],
    prompt: instruction(one) ? others.filter((other) => instruction(other) === instruction(one)) : [],
  }
}
