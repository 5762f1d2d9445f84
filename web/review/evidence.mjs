/** Why a score is what it is, and where an image comes from. Asked of the server when a candidate is looked at for a moment. */

import { ServerError, evidence, imageAddress, sourceAddress, unreachable } from "./api.mjs"
import { button, element, find, terms } from "./dom.mjs"
import { lorasOf, siblings } from "./filters.mjs"
import { count, mark, t } from "./lang.mjs"
import { forget, load } from "./pictures.mjs"
import { similarityWords, stageWord } from "./words.mjs"

const WAIT_MS = 250 // a reviewer who moves on at once asks for nothing
const CROP_PX = 116
const SIBLINGS = 8

export class Evidence {
  #asked = ""
  #timer = 0

  /**
   * @param {import("./store.mjs").ReviewStore} store @param {import("./api.mjs").CandidateSet} set
   * @param {{faces: (faces: {candidate: import("./look.mjs").Box, source: import("./look.mjs").Box}|null) => void}} does told where the faces are
   */
  constructor(store, set, does) {
    this.store = store
    this.set = set
    this.does = does
  }

  /** @param {import("./words.mjs").Candidate} candidate */
  show(candidate) {
    if (this.#asked === candidate.key) return
    this.#asked = candidate.key
    this.does.faces(null)
    this.#known(candidate)
    forget(find("#evidence").querySelectorAll("img"))
    find("#evidence").replaceChildren()
    clearTimeout(this.#timer)
    if (this.store.state?.blind) return // it would sway
    this.#timer = setTimeout(() => this.#ask(candidate), WAIT_MS)
  }

  /** What the list already says. */
  #known(candidate) {
    const { prompt, caption, seed, editor, width, height, sample, generation, lap, angle, expression, distance } = candidate
    const words = similarityWords(candidate)
    find("#viewer-similarity").className = `similarity large ${words.band}`
    find("#viewer-similarity").replaceChildren(element("b", { text: words.figure }), words.word)
    find("#viewer-prompt").textContent = prompt || t("No prompt was recorded.")
    const loras = (candidate.loras ?? []).map(({ name, weight }) => `${name} ${weight ?? ""}`.trim()).join(", ")
    find("#facts").replaceChildren(
      ...terms(
        [t("Caption"), caption !== prompt && caption],
        [t("Face distance"), typeof distance === "number" && distance.toFixed(3)],
        [t("Angle"), angle],
        [t("Expression"), expression],
        [t("Seed"), typeof seed === "number" && String(seed)],
        [t("Editor"), editor],
        [t("LoRA"), loras || lorasOf(candidate)],
        [t("Generation"), generation && (generation === 1 ? t("made from a photograph") : t("{n} steps from a photograph", { n: generation }))],
        [t("Lap"), lap && String(lap)],
        [t("Size"), `${width} × ${height} px`],
        [t("Manual sample"), sample && t("yes")],
      ),
    )
  }

  async #ask(candidate) {
    try {
      const known = await evidence(this.set, candidate.key)
      if (this.#asked !== candidate.key) return
      this.does.faces(facesOf(known, candidate))
      find("#evidence").replaceChildren(...[this.#face(known, candidate), quality(known.quality), this.#lineage(known), this.#siblings(candidate)].filter(Boolean))
    } catch (error) {
      if (!(error instanceof ServerError) && !unreachable(error)) throw error
      if (this.#asked === candidate.key) find("#evidence").replaceChildren(element("p", { class: "quiet", text: t("The evidence cannot be read just now.") }))
    }
  }

  /** The face beside the one it was matched with, and what the references are like among themselves. */
  #face(known, candidate) {
    const { matched } = candidate
    const { crops, references, spread, score } = known
    if (!matched && !score) return null
    const pair = matched && [
      crop(imageAddress(this.set, candidate.key, "full"), crops?.image, t("This image")),
      crop(sourceAddress(this.set, matched.key), crops?.matched, matched.name),
    ]
    const measured = (references ?? []).filter(({ similarity }) => typeof similarity === "number")
    const scale = measured.length > 0 && element(
      "div",
      { class: "scale", role: "img", "aria-label": t("Similarity to each reference photo: {values}", { values: measured.map(({ name, similarity }) => `${name} ${similarity.toFixed(2)}`).join(", ") }) },
      spread && element("i", { class: "spread", style: `left:${100 * spread.low}%;width:${100 * (spread.high - spread.low)}%`, title: t("How alike the reference photos are among themselves") }),
      ...measured.map(({ name, similarity }) => element("b", { style: `left:${100 * similarity}%`, title: `${name} ${similarity.toFixed(2)}` })),
    )
    const words = spread && element("p", { class: "quiet", text: t("The reference photos among themselves: {low}–{high}.", { low: spread.low.toFixed(2), high: spread.high.toFixed(2) }) })
    const note = candidate.score_note && element("p", { class: "quiet", text: candidate.score_note })
    return part(t("Why this score"), pair && element("div", { class: "crops" }, ...pair), scale, words, note)
  }

  #lineage({ lineage }) {
    if (!lineage?.length) return null
    const steps = lineage.map(({ name, stage, prompt, editor, depth }, index) =>
      element("li", {}, element("b", { text: index ? name : t("this image") }), element("span", { class: "quiet", text: [depth === 0 ? t("photograph") : stage && stageWord(stage), editor, index ? prompt : ""].filter(Boolean).join(" · ") })),
    )
    return part(t("Lineage"), element("ol", { class: "lineage" }, ...steps))
  }

  #siblings(candidate) {
    const found = siblings(this.store.candidates, candidate)
    const rows = [
      [t("From the same photograph"), found.source],
      [t("With the same prompt"), found.prompt],
    ].filter(([, others]) => others.length)
    if (!rows.length) return null
    const row = ([title, others]) => {
      const thumbs = others.slice(0, SIBLINGS).map(({ key, name, label }) =>
        button({ class: "sibling", dataset: { label: label ?? "undecided" }, title: name ?? "", "aria-label": t("Go to {name}", { name: name ?? key }), on: { click: () => this.store.goTo(key) } }, load(element("img", { alt: "" }), imageAddress(this.set, key, 256))),
      )
      return element("div", { class: "siblings" }, element("span", { class: "quiet", text: `${title}: ${others.length}` }), element("div", {}, ...thumbs))
    }
    return part(t("Siblings"), ...rows.map(row))
  }
}

const part = (title, ...content) => element("details", { class: "part", open: true }, element("summary", { text: title }), ...content)

/** Where both faces are, if the source itself is the matched reference. */
function facesOf({ crops }, { matched, source }) {
  const [image, other] = [boxOf(crops?.image), boxOf(crops?.matched)]
  return image && other && matched?.key === source?.key ? { candidate: image, source: other } : null
}

/** [left, top, right, bottom]. @returns {import("./look.mjs").Box|null} */
function boxOf(box) {
  if (!box) return null
  if (Array.isArray(box)) return box.length === 4 ? /** @type {any} */ (box) : null
  return [box.left, box.top, box.right, box.bottom]
}

function quality(report) {
  if (!report) return null
  const figures = ["sharpness", "luma"].filter((name) => typeof report[name] === "number").map((name) => [t(FIGURES[name]), report[name].toFixed(report[name] < 10 ? 2 : 0)])
  const problems = (report.problems ?? []).map((problem) => element("li", { text: problem }))
  const verdict = problems.length ? count(problems.length, "{n} problem", "{n} problems") : t("no problems found")
  return part(t("Quality: {verdict}", { verdict }), problems.length > 0 && element("ul", { class: "problems" }, ...problems), element("dl", { class: "facts" }, ...terms(.../** @type {any} */ (figures))))
}
const FIGURES = { sharpness: mark("Sharpness"), luma: mark("Brightness") }

/** A face with a margin around it; the whole picture where no face is known. */
function crop(address, described, title) {
  const box = boxOf(described)
  const image = element("img", { alt: "" })
  const frame = element("span", { class: "crop" }, image)
  image.addEventListener("load", () => {
    const [width, height] = [image.naturalWidth, image.naturalHeight]
    const [left, top, right, bottom] = box ?? [0, 0, width, height]
    const edge = Math.max(right - left, bottom - top) * (box ? 1.5 : 1)
    const k = CROP_PX / edge
    Object.assign(image.style, { width: `${width * k}px`, left: `${CROP_PX / 2 - ((left + right) / 2) * k}px`, top: `${CROP_PX / 2 - ((top + bottom) / 2) * k}px` })
  })
  load(image, address)
  return element("figure", {}, frame, element("figcaption", { text: title, title }))
}
