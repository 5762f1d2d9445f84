/** Dropped and chosen files: folders walked through, sent a few at a time, and never over another file unasked. */

import { ServerError } from "../review/api.mjs"
import { button, element, openDialog } from "../review/dom.mjs"
import { count, t } from "../review/lang.mjs"
import { archive, put } from "./api.mjs"

const AT_ONCE = 4
const WANTED = /\.(png|jpe?g|webp|bmp|tiff?|gif|heic|heif|avif|txt|jsonl)$/i
const CALLED = { target: /^(targets?|results?|outputs?|after|end)$/, control_1: /^(control_?1?|controls|sources?|inputs?|before|start)$/, control_2: /^control_?2$/, control_3: /^control_?3$/ }

const PICTURE = /\.(png|jpe?g|webp|bmp|tiff?|gif|heic|heif|avif)$/i

/** @typedef {{file: File, folder: string}} Found a file, and the path of the folder it lay in: `my set/shirts` */

/** What was dropped. Entries must be asked for before the first await. @param {DataTransfer} data @returns {Promise<Found[]>} */
export async function dropped(data) {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)
  if (!entries.length) return [...data.files].map((file) => ({ file, folder: "" }))
  return (await Promise.all(entries.map((entry) => walked(entry, "")))).flat()
}

/** What was chosen in the browser's own dialog; a folder's files know where they lay. @param {FileList} files @returns {Found[]} */
export const chosen = (files) =>
  [...files].filter(({ name, webkitRelativePath: path }) => !`/${path || name}`.includes("/.")).map((file) => ({ file, folder: file.webkitRelativePath.split("/").slice(0, -1).join("/") }))

async function walked(entry, folder) {
  if (entry.name.startsWith(".")) return []
  if (entry.isFile) return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), folder }]
  const reader = entry.createReader()
  const inside = []
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)) // at most 100 at a time
    if (!some.length) break
    inside.push(...some)
  }
  return (await Promise.all(inside.map((child) => walked(child, folder ? `${folder}/${entry.name}` : entry.name)))).flat()
}

/** The slot that a folder's path means, or null: its own name, else that of the folder around it. @param {string} path @param {import("./api.mjs").Slot[]} slots */
export const slotOf = (path, slots) => path.split("/").reverse().map((name) => meant(name, slots)).find(Boolean) ?? null

function meant(folder, slots) {
  const plain = folder.trim().toLowerCase().replace(/[\s-]+/g, "_")
  const labelled = slots.find(({ label }) => label && label.toLowerCase().replace(/[\s-]+/g, "_") === plain)
  return labelled?.slot ?? Object.keys(CALLED).find((slot) => CALLED[slot].test(plain)) ?? null
}

/**
 * Which folder goes to which slot, and whether that has to be asked: names that mean nothing, or what another folder's name means already, are
 * guessed in the order target, control 1, 2, 3.
 * @param {Found[]} found @param {import("./api.mjs").Slot[]} slots
 * @returns {{slots: Map<string, string|null>, guessed: boolean}} null: left out, there is no slot for a fifth folder
 */
export function placed(found, slots) {
  const folders = [...new Set(found.filter(({ file, folder }) => folder && PICTURE.test(file.name)).map(({ folder }) => folder))]
  const means = folders.map((folder) => slotOf(folder, slots))
  const sure = means.map((slot, at) => (slot && means.indexOf(slot) === at ? slot : null))
  const free = ["target", "control_1", "control_2", "control_3"].filter((slot) => !sure.includes(slot))
  return { slots: new Map(folders.map((folder, at) => [folder, sure[at] ?? free.shift() ?? null])), guessed: folders.length > 1 && sure.includes(null) }
}

/**
 * Send files to their slots.
 * @param {string} set @param {{file: File, slot: string, name?: string}[]} files @param {(done: number, total: number) => void} report
 * @returns {Promise<{sent: number, refused: string[]}>}
 */
export async function send(set, files, report) {
  /** @type {{file: File, slot: string, name?: string}[]} */ const taken = []
  /** @type {string[]} */ const refused = []
  let done = 0
  let sent = 0
  const one = async (wanted, replacing) => {
    const name = wanted.name ?? wanted.file.name
    try {
      if (/\.zip$/i.test(name)) await archive(set, wanted.slot, wanted.file)
      else if (!WANTED.test(name)) throw new ServerError(400, t("{name} is neither a picture nor a caption.", { name }))
      else await put(set, wanted.slot, name, wanted.file, replacing)
      sent += 1
    } catch (error) {
      if (error instanceof ServerError && error.status === 409) taken.push(wanted)
      else refused.push(`${name}: ${error.message}`)
    }
    done += 1
    report(done, files.length)
  }
  const all = async (list, replacing) => {
    const waiting = [...list]
    await Promise.all(Array.from({ length: AT_ONCE }, async () => { for (let next; (next = waiting.shift()); ) await one(next, replacing) }))
  }
  await all(files, false)
  if (taken.length && (await mayReplace(taken))) await all(taken.splice(0), true)
  return { sent, refused }
}

/** @param {{file: File, slot: string, name?: string}[]} taken @returns {Promise<boolean>} */
function mayReplace(taken) {
  return new Promise((resolve) => {
    const names = taken.slice(0, 8).map(({ file, name }) => name ?? file.name).join(", ")
    const dialog = openDialog(
      count(taken.length, "{n} name is taken", "{n} names are taken"),
      element("p", { text: taken.length > 8 ? `${names} …` : names }),
      element("p", { class: "quiet", text: t("Replaced files are kept aside and can be brought back.") }),
      element("div", { class: "dialog-end" },
        button({ class: "quiet", text: t("Keep the old ones"), on: { click: () => dialog.close() } }),
        button({ class: "primary", id: "replace-taken", text: t("Replace"), on: { click: () => (dialog.returnValue = "yes", dialog.close("yes")) } })),
    )
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"))
  })
}
