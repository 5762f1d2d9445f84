/** The tabs: the target with its badge, one to three controls, and what the open one is called and holds. */

import { button, element, find } from "../review/dom.mjs"
import { t } from "../review/lang.mjs"

const MOST = 4

/**
 * @param {import("./api.mjs").PairSet} set @param {number} open
 * @param {{open: (tab: number) => void, add: () => void, remove: (slot: string) => void, describe: (slot: string, values: {label?: string, holds?: string}) => void, files: () => void, folder: () => void}} does
 */
export function tabs(set, open, does) {
  const most = Math.max(...set.slots.map(({ count }) => count))
  const made = set.slots.map((slot, number) => tab(slot, number, number === open, slot.count < most, set.slots.length > 2, does))
  const add = set.slots.length < MOST ? button({ id: "add-control", class: "quiet", text: `+ ${t("Add control")}`, on: { click: does.add } }) : null
  const bar = find("#tabs")
  bar.replaceChildren(...made, ...(add ? [add] : []))
  bar.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key]
    if (!by || !event.target.matches("[role=tab]")) return
    event.preventDefault()
    does.open((open + by + set.slots.length) % set.slots.length)
    bar.querySelector("[aria-selected=true]")?.focus()
  }
  about(set.slots[open], open, does)
}

function tab(slot, number, open, short, removable, does) {
  const word = number ? t("Control {n}", { n: number }) : t("Target")
  return element("span", { class: `tab${open ? " open" : ""}` },
    button({ role: "tab", "aria-selected": String(open), tabindex: open ? 0 : -1, dataset: { slot: slot.slot }, on: { click: () => does.open(number) } },
      element("span", { class: number ? "badge control" : "badge target", text: word }),
      slot.label && element("b", { text: slot.label }),
      element("span", { class: short ? "count short" : "count", text: String(slot.count) })),
    number && removable ? button({ class: "take", "aria-label": t("Remove {name}", { name: word }), title: t("Remove {name}", { name: word }), text: "×", on: { click: () => does.remove(slot.slot) } }) : null)
}

/** What the open dataset is called and holds, to be changed in place. */
function about(slot, number, does) {
  const section = find("#about")
  if (section.contains(document.activeElement) && section.dataset.slot === slot.slot) return // not under somebody's fingers
  section.dataset.slot = slot.slot
  const label = element("input", { id: "label", maxlength: 60, placeholder: number ? t("shirts, logos, poses …") : t("results") })
  label.value = slot.label
  label.addEventListener("change", () => does.describe(slot.slot, { label: label.value }))
  const holds = element("input", { id: "holds", maxlength: 300, placeholder: number ? t("what each result was made from, or a further picture for it") : t("the results that the model shall learn to make") })
  holds.value = slot.holds
  holds.addEventListener("change", () => does.describe(slot.slot, { holds: holds.value }))
  section.replaceChildren(element("label", {}, t("Label"), label), element("label", { class: "wide" }, t("What it holds"), holds),
    button({ id: "add-files", class: "quiet", text: t("Add files"), on: { click: does.files } }), button({ id: "add-folder", class: "quiet", text: t("Add a folder"), on: { click: does.folder } }))
}
