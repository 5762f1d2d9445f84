/** What the panel asks in a dialog: importing, find and replace, exporting. Each resolves to what was chosen, or null. */

import { button, element, openDialog } from "../review/dom.mjs"
import { count, mark, t } from "../review/lang.mjs"
import { drawn } from "./api.mjs"

const STAGES = { source: mark("photos"), enriched: mark("good edits"), synthetic: mark("good synthetic images"), corrections: mark("good corrections"), qwen_training: mark("triplets, as whole pairs") }

/**
 * @template T
 * @param {string} title @param {(close: (chosen: T) => void) => (Node|null)[]} content
 * @returns {Promise<T|null>}
 */
function asked(title, content) {
  return new Promise((resolve) => {
    let chosen = null
    const dialog = openDialog(title, ...content((value) => { chosen = value; dialog.close() }))
    dialog.addEventListener("close", () => resolve(chosen))
  })
}

const end = (...buttons) => element("div", { class: "dialog-end" }, ...buttons)

/** @param {{folder: string, name: string, stages: string[]}[]} projects @param {() => void} chooseArchive @returns {Promise<{project: string, stage: string}|null>} */
export function importFrom(projects, chooseArchive) {
  return asked(t("Import"), (close) => {
    const options = projects.flatMap(({ folder, name, stages }) => stages.map((stage) => element("option", { value: JSON.stringify([folder, stage]), text: `${name}: ${t(STAGES[stage] ?? stage)}` })))
    const select = element("select", { "aria-label": t("Project") }, ...options)
    return [
      element("p", { text: t("A zip archive: folders called target, control 1 …, or the layout of any trainer that Export Dataset knows.") }),
      button({ class: "primary", text: t("Choose a zip archive"), on: { click: () => { close(null); chooseArchive() } } }),
      options.length ? element("label", {}, t("Images of a project, into the open tab"), select) : null,
      end(button({ class: "quiet", text: t("Cancel"), on: { click: () => close(null) } }),
        options.length ? button({ class: "primary", text: t("Import"), on: { click: () => { const [project, stage] = JSON.parse(select.value); close({ project, stage }) } } }) : null),
    ].filter(Boolean)
  })
}

/**
 * Which dropped folder holds what, where their names do not say it.
 * @param {Map<string, string|null>} guess folder to slot @param {import("./api.mjs").Slot[]} slots @returns {Promise<Map<string, string|null>|null>}
 */
export function whichIsWhat(guess, slots) {
  return asked(t("Which folder holds what?"), (close) => {
    const named = (number) => [number ? t("Control {n}", { n: number }) : t("Target"), slots[number]?.label].filter(Boolean).join(": ")
    const places = ["target", "control_1", "control_2", "control_3"].map((slot, number) => ({ slot, text: named(number) }))
    const selects = new Map([...guess].map(([folder, slot]) => {
      const select = element("select", { dataset: { folder } }, ...places.map((place) => element("option", { value: place.slot, text: place.text })), element("option", { value: "", text: t("Leave out") }))
      select.value = slot ?? ""
      return [folder, select]
    }))
    return [element("p", { text: t("The names of these folders do not say it. Files pair by their names, so every folder needs its own place.") }),
      ...[...selects].map(([folder, select]) => element("label", {}, folder, select)),
      end(button({ class: "quiet", text: t("Cancel"), on: { click: () => close(null) } }),
        button({ class: "primary", id: "places-go", text: t("Add the files"), on: { click: () => close(new Map([...selects].map(([folder, select]) => [folder, select.value || null]))) } }))]
  })
}

/**
 * @param {(what: {find: string, put: string, any_case: boolean}) => Promise<Record<string, string>>} preview
 * @returns {Promise<{find: string, put: string, any_case: boolean}|null>}
 */
export function findAndReplace(preview) {
  return asked(t("Find and replace in captions"), (close) => {
    const [find, put] = ["find-words", "put-words"].map((id) => element("input", { id }))
    const anyCase = element("input", { type: "checkbox", id: "any-case" })
    const told = element("ul", { class: "changes" })
    const go = button({ class: "primary", id: "replace-go", text: t("Replace"), disabled: true, on: { click: () => close(what()) } })
    const what = () => ({ find: find.value, put: put.value, any_case: anyCase.checked })
    let asking = 0
    const look = async () => {
      const mine = (asking += 1)
      /** @type {Record<string, string>} */
      let changes = {}
      try {
        if (find.value) changes = await preview(what())
      } catch (error) {
        if (mine !== asking) return
        told.replaceChildren(element("li", { text: error instanceof Error ? error.message : String(error) })) // not "nothing found": nobody looked
        go.disabled = true
        go.textContent = t("Replace")
        return
      }
      if (mine !== asking) return
      const words = Object.values(changes)
      told.replaceChildren(...words.slice(0, 5).map((text) => element("li", { text })), ...(words.length > 5 ? [element("li", { class: "quiet", text: count(words.length - 5, "and {n} more", "and {n} more") })] : []))
      go.disabled = !words.length
      go.textContent = words.length ? count(words.length, "Replace in {n} caption", "Replace in {n} captions") : t("Nothing found")
    }
    for (const input of [find, put, anyCase]) input.addEventListener("input", () => void look())
    return [element("label", {}, t("Find"), find), element("label", {}, t("Replace with"), put), element("label", { class: "check" }, anyCase, t("Upper and lower case alike")), told,
      end(button({ class: "quiet", text: t("Cancel"), on: { click: () => close(null) } }), go)]
  })
}

/** @param {string[]} layouts @returns {Promise<{layout: string, megapixels: number}|null>} */
export function exportAs(layouts) {
  return asked(t("Export"), (close) => {
    const layout = element("select", { id: "layout", "aria-label": t("Trainer") }, ...layouts.map((name) => element("option", { value: name, text: name })))
    layout.value = layouts.includes("musubi-tuner") ? "musubi-tuner" : layouts[0]
    const size = element("input", { type: "number", id: "megapixels", min: 0, max: 4, step: 0.1, value: 0 })
    return [element("label", {}, t("Trainer"), layout), element("label", {}, t("Megapixels; 0 keeps every picture's size. Nothing is cropped."), size),
      end(button({ class: "quiet", text: t("Cancel"), on: { click: () => close(null) } }),
        button({ class: "primary", id: "export-go", text: t("Export"), on: { click: () => close({ layout: layout.value, megapixels: Number(size.value) || 0 }) } }))]
  })
}

/** @param {string} title @param {string} text */
export const tellAll = (title, text) =>
  asked(title, (close) => [element("pre", { class: "told", text }), end(button({ class: "primary", text: t("Close"), on: { click: () => close(null) } }))])

/** What the pair doctor found, drawn. @param {string} set @param {import("./api.mjs").Row} row @param {import("./api.mjs").Finding} finding */
export function look(set, row, finding) {
  const shown = asked(t("What was found in {name}", { name: row.stem }), (close) => {
    const image = element("img", { class: "drawn", src: drawn(set, finding), alt: finding.text })
    const missing = element("p", { hidden: true, text: t("The pair has changed since. Let the pair doctor look again.") })
    image.addEventListener("error", () => { image.hidden = true; missing.hidden = false })
    return [element("p", { text: finding.text }), image, missing, end(button({ class: "primary", text: t("Close"), on: { click: () => close(null) } }))]
  })
  document.querySelector("dialog:has(.drawn)")?.classList.add("wide")
  return shown
}
