/** What the page calls things: labels, filters, orders, and the words for a similarity. No DOM, no state. */

/** @typedef {"good"|"needs_correction"|"reject"} Label */
/** @typedef {{label: Label|null, reasons: string[], note: string}} Verdict */
/**
 * @typedef {Verdict & {key: string, name: string, origin: "person"|"policy"|"folder"|null, prompt: string,
 *   source: {key: string, name: string}|null, seed: number|null, editor: string, sample: boolean, width: number, height: number,
 *   similarity: number|null, distance: number|null, state: "measured"|"no_face"|"unverifiable"|"unreadable"|null}} Candidate
 */

/** @type {{label: Label, word: string, key: string, letter: string, icon: string}[]} */
export const LABELS = [
  { label: "good", word: "Good", key: "1", letter: "g", icon: "good" },
  { label: "needs_correction", word: "Needs correction", key: "2", letter: "c", icon: "needs_correction" },
  { label: "reject", word: "Reject", key: "3", letter: "x", icon: "reject" },
]

/** @param {Label|null} label */
export const wordFor = (label) => LABELS.find((known) => known.label === label)?.word ?? "Undecided"

/** @param {{label: Label|null}} verdict */
export const wantsReasons = (verdict) => verdict.label === "needs_correction" || verdict.label === "reject"

/** @type {{name: string, word: string, holds: (candidate: Candidate) => boolean, always?: boolean}[]} */
export const FILTERS = [
  { name: "undecided", word: "Undecided", holds: (candidate) => !candidate.label, always: true },
  { name: "all", word: "All", holds: () => true, always: true },
  { name: "good", word: "Good", holds: (candidate) => candidate.label === "good", always: true },
  { name: "needs_correction", word: "Needs correction", holds: (candidate) => candidate.label === "needs_correction", always: true },
  { name: "reject", word: "Reject", holds: (candidate) => candidate.label === "reject", always: true },
  { name: "unmeasured", word: "Not measurable", holds: (candidate) => candidate.similarity === null && candidate.state !== null },
  { name: "sample", word: "Manual sample", holds: (candidate) => candidate.sample },
]

/** @type {{name: string, word: string, compare: ((a: Candidate, b: Candidate) => number)|null}[]} null keeps the order of the files. */
export const ORDERS = [
  { name: "file", word: "File order", compare: null },
  { name: "similarity", word: "Similarity, lowest first", compare: (a, b) => (a.similarity ?? -1) - (b.similarity ?? -1) },
]

const BANDS = { match: ["match", "match"], review: ["look closely", "look"], different: ["different", "different"] } // as the server says
const UNMEASURED = { no_face: "No face", unverifiable: "Face unclear", unreadable: "Unreadable" }

/**
 * How near a candidate is to the reference photos: number, word and band (the colour), never the colour alone.
 * @param {Candidate} candidate
 * @returns {{figure: string, word: string, band: "match"|"look"|"different"|"unmeasured"|"none"}}
 */
export function similarityWords({ similarity, state, band }) {
  if (similarity === null) {
    return state === null ? { figure: "", word: "Not scored", band: "none" } : { figure: "", word: UNMEASURED[state] ?? state, band: "unmeasured" }
  }
  const [word, colour] = BANDS[band] ?? BANDS.review
  return { figure: similarity.toFixed(2), word, band: colour }
}

const STAGES = { enriched: "Enriched", synthetic: "Synthetic" }

/** @param {string} stage */
export const stageWord = (stage) => STAGES[stage] ?? stage

/** @param {number} number @param {string} one @param {string} [many] */
export const plural = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`
