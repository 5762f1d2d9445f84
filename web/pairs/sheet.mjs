/** The pair sheet: one line per pair, with target, controls, words and what is wrong; and the grid of one dataset's files. */

import { button, element } from "../review/dom.mjs"
import { t } from "../review/lang.mjs"
import { picture } from "./api.mjs"

const [LINE_PX, NARROW_LINE_PX] = [148, 252]
export const TILE_PX = 176
const TILE_WIDE_PX = 150
const THUMB = 256

/** @typedef {import("./api.mjs").Row} Row */
/** @typedef {{set: string, slots: import("./api.mjs").Slot[], findings: Map<string, import("./api.mjs").Finding[]>}} Shown */
/**
 * @typedef {{
 *   put: (files: DataTransfer, slot: string, row: Row) => void, take: (slot: string, name: string) => void, drop: (row: Row) => void,
 *   caption: (row: Row, words: string) => void, next: (row: Row, by: number) => void, mend: (row: Row) => void,
 *   look: (row: Row, finding: import("./api.mjs").Finding) => void }} Does
 */

/** Height of a line, px: on a phone the words stand below the pictures, see panel.css. */
export const linePx = () => (matchMedia("(max-width: 560px)").matches ? NARROW_LINE_PX : LINE_PX)

/** @param {Shown} shown @param {Row} row @param {number} number @param {Does} does */
export function line(shown, row, number, does) {
  const findings = shown.findings.get(row.key) ?? []
  const told = [...row.problems.map((text) => element("li", { text })), ...findings.map((finding) => element("li", { text: finding.text }, finding.drawn && looker(row, finding, does)))]
  const cells = shown.slots.map((slot, index) => cell(shown, slot, row, row.files[index], does))
  const mendable = findings.some(({ fix }) => fix === "align" || fix === "crop")
  return element(
    "div",
    { class: `pair${row.problems.length ? " wrong" : findings.length ? " found" : ""}`, role: "row", dataset: { key: row.key } },
    element("span", { class: "number", text: String(number + 1) }),
    ...cells,
    element("div", { class: "words" },
      caption(row, does),
      told.length ? element("ul", { class: "wrongs" }, ...told) : null,
      element("div", { class: "ways" },
        mendable && button({ class: "quiet mend", text: t("Align"), on: { click: () => does.mend(row) } }),
        told.length ? button({ class: "quiet drop", text: t("Take this pair out"), on: { click: () => does.drop(row) } }) : null),
    ),
  )
}

const looker = (row, finding, does) => button({ class: "quiet look", text: t("Look"), "aria-label": t("Look at: {what}", { what: finding.text }), on: { click: () => does.look(row, finding) } })

function caption(row, does) {
  const area = element("textarea", {
    class: row.own ? "caption" : "caption general", rows: 2, "aria-label": t("Words for {name}", { name: row.stem }), disabled: row.files[0] ? null : true,
    placeholder: t("What shall be done? Or give one instruction for all above."), dataset: { key: row.key },
  })
  area.value = row.caption
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault()
      does.next(row, 1)
    } else if (event.key === "Escape") {
      area.value = row.caption
    } else if (event.altKey && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
      event.preventDefault()
      does.next(row, event.key === "ArrowDown" ? 1 : -1)
    }
  })
  area.addEventListener("blur", () => area.value !== row.caption && does.caption(row, area.value))
  return area
}

/** One picture of a pair, or the place where it is missing. */
function cell(shown, slot, row, file, does) {
  const place = file
    ? element("figure", { class: "cell", role: "gridcell", dataset: { slot: slot.slot } },
        image(shown, slot, file),
        element("figcaption", { title: `${file.name}, ${file.width} × ${file.height}`, text: file.name }),
        button({ class: "take", "aria-label": t("Take {name} out", { name: file.name }), title: t("Take {name} out", { name: file.name }), text: "×", on: { click: () => does.take(slot.slot, file.name) } }))
    : element("figure", { class: "cell missing", role: "gridcell", dataset: { slot: slot.slot } },
        element("div", { class: "hole", text: t("Missing: drop the picture for {name} here", { name: row.stem }) }))
  takesDrops(place, (data) => does.put(data, slot.slot, row))
  return place
}

function image(shown, slot, file) {
  const shownImage = element("img", { src: file.v ? picture(shown.set, slot.slot, file, THUMB) : null, alt: file.name, decoding: "async", draggable: "false" })
  shownImage.addEventListener("error", () => shownImage.parentElement?.classList.add("broken"))
  return shownImage
}

/** @param {HTMLElement} place @param {(data: DataTransfer) => void} put */
export function takesDrops(place, put) {
  const over = (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return
    event.preventDefault()
    event.stopPropagation()
    place.classList.toggle("over", event.type !== "drop" && event.type !== "dragleave")
    if (event.type === "drop") put(event.dataTransfer)
  }
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) place.addEventListener(name, over)
}

/** How many tiles stand beside each other. @param {number} width px */
export const columnsFor = (width) => Math.max(1, Math.floor(width / TILE_WIDE_PX))

/** A line of the grid of files. @param {Shown} shown @param {import("./api.mjs").Slot} slot @param {number} index @param {Row[]} rows @param {number} columns @param {Does} does */
export function tiles(shown, slot, index, rows, columns, does) {
  const made = rows.map((row) => {
    const tile = cell(shown, slot, row, row.files[index], does)
    if (row.problems.length) tile.classList.add("wrong")
    tile.title = row.problems.join("\n")
    return tile
  })
  const shownLine = element("div", { class: "tiles", role: "row" }, ...made)
  shownLine.style.setProperty("--columns", String(columns))
  return shownLine
}
