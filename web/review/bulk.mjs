/** One verdict on many: what would change is shown first, and undo takes it back at once. */

import { imageAddress } from "./api.mjs"
import { button, element, icon, openDialog } from "./dom.mjs"
import { count, t } from "./lang.mjs"
import { forget, load } from "./pictures.mjs"
import { reasonWord, wantsReasons, wordFor } from "./words.mjs"

const SHOWN = 36

/**
 * @param {import("./store.mjs").ReviewStore} store @param {import("./api.mjs").CandidateSet} set
 * @param {import("./words.mjs").Candidate[]} candidates
 * @param {import("./words.mjs").Label|null|"suggested"} label "suggested": what the machine proposes for each; only the undecided are touched
 * @param {(changed: number) => void} done
 */
export function decideTogether(store, set, candidates, label, done) {
  const wanted = (candidate) => (label === "suggested" ? (candidate.suggestion?.label ?? null) : label)
  const decided = candidates.filter((candidate) => candidate.label)
  const only = element("input", { type: "checkbox" })
  only.checked = label === "suggested"
  only.disabled = label === "suggested" || !decided.length
  const reasons = new Set()
  const preview = element("div", { class: "preview" })
  const confirm = button({ class: "primary" })
  const touched = () => candidates.filter((candidate) => wanted(candidate) !== candidate.label && !(only.checked && candidate.label))

  const draw = () => {
    const changing = touched()
    confirm.replaceChildren(count(changing.length, "Change {n} image", "Change {n} images"), element("kbd", { text: "Enter" }))
    confirm.disabled = !changing.length
    preview.replaceChildren(...changesOf(changing, wanted).map(line), thumbs(set, changing))
  }
  only.addEventListener("change", draw)
  confirm.addEventListener("click", () => {
    const changing = touched()
    dialog.close()
    store.labelEach(changing.map((candidate) => ({ key: candidate.key, label: wanted(candidate), reasons: [...reasons] })))
    done(changing.length)
  })

  const title = label === "suggested" ? t("Accept the suggestions?") : label ? t("{label}: all of these?", { label: wordFor(label) }) : t("Withdraw the verdicts on all of these?")
  const dialog = openDialog(
    title,
    preview,
    wantsReasons({ label: /** @type {any} */ (label) }) && reasonChips(store.reasons, reasons),
    element("label", { class: "check" }, only, t("Leave alone what is decided already ({n})", { n: decided.length })),
    element("p", { class: "quiet", text: t("One step: a single undo takes all of it back.") }),
    element("div", { class: "dialog-end" }, button({ class: "quiet", on: { click: () => dialog.close() } }, t("Cancel"), element("kbd", { text: "Esc" })), confirm),
  )
  dialog.classList.add("bulk")
  dialog.addEventListener("close", () => forget(dialog.querySelectorAll("img")))
  dialog.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || /** @type {HTMLElement} */ (event.target).closest("button")) return
    event.preventDefault()
    confirm.click()
  })
  draw()
  confirm.focus()
}

/** Which changes, and how many of each. */
function changesOf(candidates, wanted) {
  const changes = new Map()
  for (const candidate of candidates) {
    const name = `${candidate.label} ${wanted(candidate)}`
    const change = changes.get(name) ?? { from: candidate.label, to: wanted(candidate), number: 0 }
    changes.set(name, { ...change, number: change.number + 1 })
  }
  return [...changes.values()].sort((a, b) => b.number - a.number)
}

const line = ({ from, to, number }) =>
  element("p", { class: "change" }, element("b", { text: String(number) }), element("span", { class: from ?? "", text: wordFor(from) }), "→", element("span", { class: `to ${to ?? ""}` }, to && icon(to), wordFor(to)))

function thumbs(set, candidates) {
  const images = candidates.slice(0, SHOWN).map(({ key, name }) => load(element("img", { alt: name ?? "", title: name ?? "" }), imageAddress(set, key, 256)))
  const more = candidates.length > SHOWN && element("span", { class: "more", text: t("and {n} more", { n: candidates.length - SHOWN }) })
  return element("div", { class: "thumbs" }, ...images, more)
}

function reasonChips(known, chosen) {
  const chips = known.map((reason) => {
    const chip = button({ class: "chip", "aria-pressed": "false", text: reasonWord(reason) })
    chip.addEventListener("click", () => {
      if (!chosen.delete(reason)) chosen.add(reason)
      chip.setAttribute("aria-pressed", String(chosen.has(reason)))
    })
    return chip
  })
  return element("div", { class: "chips", role: "group", "aria-label": t("Reasons") }, ...chips)
}
