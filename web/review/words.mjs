/** What the page calls things: labels, stages, passes, and the words for a similarity. No DOM, no state. */

import { mark, t } from "./lang.mjs"

/** @typedef {"good"|"needs_correction"|"reject"} Label */
/** @typedef {{label: Label|null, reasons: string[], note: string, answers?: Record<string, boolean>}} Verdict */
/** @typedef {{key: string, name: string}} Named */
/**
 * One image as nodes/routes.py describes it under ITEM; a blind pass leaves much of it out.
 * @typedef {Verdict & {key: string, name: string, stage?: string, width: number, height: number, origin: "person"|"policy"|"folder"|null, prompt: string,
 *   template?: string, caption?: string, source: Named|null, seed: number|null, editor: string, loras?: {name: string, weight: number}[],
 *   generation?: number|null, lap?: number, angle?: string|null, expression?: string|null, sample: boolean, answers?: Record<string, boolean>,
 *   labels?: Record<string, Verdict|null>, similarity: number|null, distance: number|null, band?: string|null, score_note?: string,
 *   state: "measured"|"no_face"|"unverifiable"|"unreadable"|null, matched?: Named|null, suggestion?: {label: Label, why: string}|null,
 *   disagreement?: string|null, corrects?: (Named & {stage: string})|null, corrections?: (Named & {stage: string, label: Label|null})[], repairs?: number}} Candidate
 */

/** @type {{label: Label, word: string, key: string, letter: string, icon: Label}[]} */
export const LABELS = [
  { label: "good", word: mark("Good"), key: "1", letter: "g", icon: "good" },
  { label: "needs_correction", word: mark("Needs correction"), key: "2", letter: "c", icon: "needs_correction" },
  { label: "reject", word: mark("Reject"), key: "3", letter: "x", icon: "reject" },
]

/** @param {Label|null|undefined} label */
export const wordFor = (label) => t(LABELS.find((known) => known.label === label)?.word ?? mark("Undecided"))

/** By what it was decided where not by a person in the review: a rule, or files sorted by hand; else empty. @param {Pick<Candidate, "label"|"origin">} candidate */
export const ruleWord = ({ label, origin }) => (!label || !origin || origin === "person" ? "" : origin === "folder" ? t("by folder") : t("by a rule"))

/** @param {{label: Label|null}} verdict */
export const wantsReasons = (verdict) => verdict.label === "needs_correction" || verdict.label === "reject"

const REASONS = {
  identity: mark("identity"), hands: mark("hands"), anatomy: mark("anatomy"), background: mark("background"), lighting: mark("lighting"),
  artefact: mark("artefact"), blur: mark("blur"), composition: mark("composition"), other: mark("other"),
}
/** @param {string} reason */
export const reasonWord = (reason) => t(REASONS[reason] ?? reason)

const BANDS = { match: [mark("match"), "match"], review: [mark("look closely"), "look"], different: [mark("different"), "different"] } // as the server says
const UNMEASURED = { no_face: mark("No face"), unverifiable: mark("Not measurable"), unreadable: mark("Unreadable") }

/**
 * How near a candidate is to the reference photos: number, word and band (the colour), never the colour alone.
 * @param {Candidate} candidate
 * @returns {{figure: string, word: string, band: "match"|"look"|"different"|"unmeasured"|"none"}}
 */
export function similarityWords({ similarity, state, band }) {
  if (similarity === null || similarity === undefined) {
    return state ? { figure: "", word: t(UNMEASURED[state] ?? state), band: "unmeasured" } : { figure: "", word: t("Not scored"), band: "none" }
  }
  const [word, colour] = BANDS[band ?? ""] ?? BANDS.review
  return { figure: similarity.toFixed(2), word: t(word), band: colour }
}

const STAGES = { enriched: mark("Enriched"), synthetic: mark("Synthetic"), corrections: mark("Corrections"), card: mark("Model card") }
/** @param {string} stage */
export const stageWord = (stage) => t(STAGES[stage] ?? stage)

/** @type {{pass: import("./api.mjs").Pass, word: string, hint: string}[]} */
export const PASSES = [
  { pass: "first", word: mark("First pass"), hint: mark("Quick: is it usable?") },
  { pass: "strict", word: mark("Strict pass"), hint: mark("What the first pass called good, with four questions; whatever falls needs a reason.") },
  { pass: "repeat", word: mark("Repeat"), hint: mark("A tenth of the images once more, blind: shows how far you agree with yourself. It moves nothing.") },
]
