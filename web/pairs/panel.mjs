/**
 * The panel that builds a set of pairs: tabs for target and controls, files dropped in, problems where they are, words by keyboard. A page of its
 * own (/flenwheel/pairs?set=name), and the inside of the node Load Paired Dataset (&embedded=1).
 */

import { ask } from "../review/api.mjs"
import { button, element, find } from "../review/dom.mjs"
import { count, learn, t, translate } from "../review/lang.mjs"
import { create, overview, state as stateOf, tell } from "./api.mjs"
import { exportAs, findAndReplace, importFrom, look, tellAll, whichIsWhat } from "./dialogs.mjs"
import { chosen, dropped, placed, send, slotOf } from "./files.mjs"
import { toast, trouble } from "./say.mjs"
import { TILE_PX, columnsFor, line, linePx, takesDrops, tiles } from "./sheet.mjs"
import { tabs } from "./tabs.mjs"
import { Windowed } from "./windowed.mjs"

const query = new URLSearchParams(location.search)
const NOTE = "flenwheel.pairing-understood"

class Panel {
  tab = 0
  view = "sheet"
  onlyProblems = false
  /** @type {Map<string, import("./api.mjs").Finding[]>} */
  findings = new Map()

  /** @param {import("./api.mjs").PairSet} set */
  constructor(set) {
    this.list = new Windowed(find("#scroller"))
    this.does = {
      put: (data, slot, row) => void this.fill(data, slot, row),
      take: (slot, name) => void this.takeOut({ slot, names: [name] }, name),
      drop: (row) => void this.takeOut({ keys: [row.key] }, row.stem),
      caption: (row, words) => void this.saveCaption(row, words),
      next: (row, by) => this.goOn(row, by),
      mend: (row) => void this.mend([row.key]),
      look: (row, finding) => void look(this.set.id, row, finding),
    }
    this.bind()
    this.show(set)
  }

  bind() {
    takesDrops(document.body, (data) => void dropped(data).then((found) => this.take(found)))
    const picker = find("#picker")
    for (const one of [picker, find("#folder-picker")]) {
      one.addEventListener("change", () => {
        void this.take(chosen(one.files))
        one.value = ""
      })
    }
    for (const [id, one] of [["#choose-files", picker], ["#choose-folder", find("#folder-picker")]]) find(id).addEventListener("click", () => one.click())
    find("#import").addEventListener("click", () => void this.bringIn(picker))
    find("#replace").addEventListener("click", () => void this.replace())
    find("#examine").addEventListener("click", () => void this.examine())
    find("#export").addEventListener("click", () => void this.export())
    find("#only-problems").addEventListener("click", () => { this.onlyProblems = !this.onlyProblems; this.draw() })
    for (const name of ["instruction", "trigger_word"]) {
      find(`#${name}`).addEventListener("change", (event) => void this.change("", { [name]: event.target.value }))
    }
    for (const choice of viewChoices()) choice.addEventListener("click", () => { this.view = choice.dataset.view; this.draw() })
    addEventListener("focus", () => void this.refresh())
    new ResizeObserver(() => (this.view === "files" || this.linePx !== linePx()) && this.draw()).observe(find("#scroller"))
  }

  get slot() {
    return this.set.slots[Math.min(this.tab, this.set.slots.length - 1)]
  }

  get rows() {
    return this.onlyProblems ? this.set.rows.filter(({ key, problems }) => problems.length || this.findings.has(key)) : this.set.rows
  }

  /** @param {import("./api.mjs").PairSet} set */
  show(set) {
    this.set = set
    this.draw()
  }

  draw() {
    const { set } = this
    document.title = `${set.name} · ${t("FLENwheel pairs")}`
    find("#name").textContent = set.name
    this.tab = Math.min(this.tab, set.slots.length - 1)
    tabs(set, this.tab, {
      open: (tab) => { this.tab = tab; this.draw() },
      add: () => void this.change("controls", { add: true }).then(() => { this.tab = this.set.slots.length - 1; this.draw() }),
      remove: (slot) => void this.change("controls", { remove: slot }),
      describe: (slot, values) => void this.change("", { slots: { [slot]: values } }),
      files: () => find("#picker").click(),
      folder: () => find("#folder-picker").click(),
    })
    this.#alert()
    const wrong = set.rows.filter(({ key, problems }) => problems.length || this.findings.has(key)).length
    const whole = set.rows.length - wrong
    const wordless = set.rows.filter(({ caption, problems }) => !caption && !problems.length).length
    find("#summary").textContent = !set.rows.length ? t("No images yet.") : wrong
      ? `${count(whole, "{n} pair fits", "{n} pairs fit")}, ${count(wrong, "{n} has a problem", "{n} have problems")}`
      : wordless
        ? count(wordless, "{n} pair fits and needs words", "{n} pairs fit and need words")
        : count(set.rows.length, "{n} pair, complete", "{n} pairs, all complete")
    const only = find("#only-problems")
    only.textContent = count(wrong, "Only problems ({n})", "Only problems ({n})")
    only.disabled = !wrong && !this.onlyProblems
    only.setAttribute("aria-pressed", String(this.onlyProblems))
    for (const choice of viewChoices()) choice.setAttribute("aria-pressed", String(choice.dataset.view === this.view))
    for (const name of ["instruction", "trigger_word"]) {
      const input = find(`#${name}`)
      if (document.activeElement !== input) input.value = set[name]
    }
    find("#empty").hidden = set.rows.length > 0
    find("#scroller").hidden = !set.rows.length
    find("#empty-where").textContent = t("They go into {tab}.", { tab: this.slot.label || this.#word(this.tab) })
    for (const id of ["export", "examine", "replace"]) find(`#${id}`).disabled = !set.rows.length
    this.#list()
  }

  #word(tab) {
    return tab ? t("Control {n}", { n: tab }) : t("Target")
  }

  #list() {
    const { rows, set, findings } = this
    const shown = { set: set.id, slots: set.slots, findings }
    const { scrollTop } = this.list.scroller
    this.linePx = linePx()
    if (this.view === "sheet") this.list.set(rows.length, this.linePx, (number) => line(shown, rows[number], set.rows.indexOf(rows[number]), this.does))
    else {
      const columns = columnsFor(this.list.scroller.clientWidth)
      this.list.set(Math.ceil(rows.length / columns), TILE_PX, (number) => tiles(shown, this.slot, this.tab, rows.slice(number * columns, (number + 1) * columns), columns, this.does))
    }
    this.list.scroller.scrollTop = scrollTop
  }

  /** The orange alert: counts that differ, and how many names do not fit. */
  #alert() {
    const { slots, problems, general, rows } = this.set
    const counts = new Set(slots.map((slot) => slot.count))
    const alert = find("#mismatch")
    alert.hidden = !rows.length || (counts.size === 1 && !problems && !general.length)
    if (alert.hidden) return
    const counted = slots.map(({ label, count: n }, tab) => `${label || this.#word(tab)} ${n}`).join(", ")
    const head = counts.size > 1 ? t("The numbers of images differ: {counts}.", { counts: counted }) : t("The files do not fit together yet ({counts}).", { counts: counted })
    alert.replaceChildren(
      element("p", {}, element("b", { text: head }), ` ${problems ? count(problems, "{n} name has no partner or another problem.", "{n} names have no partner or another problem.") : ""} ${general.join(" ")}`),
      problems ? button({ id: "show-problems", class: "go", text: t("Show them"), on: { click: () => { this.onlyProblems = true; this.view = "sheet"; this.draw() } } }) : "",
      problems ? button({ id: "drop-problems", class: "go", text: t("Take them out"), on: { click: () => void this.takeOut({ keys: rows.filter((row) => row.problems.length).map(({ key }) => key) }, count(problems, "{n} pair", "{n} pairs")) } }) : "",
    )
  }

  async ensure() {
    if (!this.set.id) this.set = await create(this.set.name)
  }

  /** Ask the server for a change and show the set as it is then. @param {Parameters<typeof tell>[1]} what @param {object} json */
  async change(what, json) {
    try {
      await this.ensure()
      const answer = await tell(this.set.id, what, json)
      this.show(answer)
      return answer
    } catch (error) {
      trouble(error)
      return null
    }
  }

  async refresh() {
    if (!this.set.id || document.activeElement?.matches("textarea, input")) return // not under somebody's fingers
    await stateOf(this.set.id).then((set) => this.show(set), () => {}) // the next change tells
  }

  /** Files that were chosen, or dropped anywhere but on a pair's own place. @param {import("./files.mjs").Found[]} found */
  async take(found) {
    const { slots: guess, guessed } = placed(found, this.set.slots)
    const chosen = guessed ? await whichIsWhat(guess, this.set.slots) : null
    if (guessed && !chosen) return
    const place = (folder) => (chosen?.has(folder) ? chosen.get(folder) : slotOf(folder, this.set.slots) ?? this.slot.slot)
    const files = found.flatMap(({ file, folder }) => { const slot = place(folder); return slot ? [{ file, slot }] : [] })
    const controls = Math.max(0, ...files.map(({ slot }) => Number(slot.split("_")[1] ?? 0)))
    while (this.set.slots.length <= controls && (await this.change("controls", { add: true })));
    await this.upload(files)
  }

  /** A file dropped on one place of one pair gets that pair's name. */
  async fill(data, slot, row) {
    const found = await dropped(data)
    if (found.length !== 1) return this.upload(found.map(({ file }) => ({ file, slot })))
    const [{ file }] = found
    const ending = file.name.includes(".") ? file.name.slice(file.name.lastIndexOf(".")) : ""
    await this.upload([{ file, slot, name: `${row.stem}${ending}` }])
  }

  /** @param {{file: File, slot: string, name?: string}[]} files */
  async upload(files) {
    if (!files.length) return
    const progress = find("#progress-text")
    await this.ensure()
    const { sent, refused } = await send(this.set.id, files, (done, total) => { progress.textContent = t("{done} of {total} files", { done, total }) })
    this.findings = new Map()
    await stateOf(this.set.id).then((set) => this.show(set), trouble)
    progress.textContent = count(sent, "{n} file added", "{n} files added")
    if (refused.length) await tellAll(count(refused.length, "{n} file was not taken", "{n} files were not taken"), refused.join("\n"))
  }

  /** @param {object} what @param {string} name */
  async takeOut(what, name) {
    const answer = await this.change("remove", what)
    if (!answer) return
    toast(t("{name} was taken out.", { name }), t("Bring back"), () => void this.change("restore", { batch: answer.batch }))
  }

  /** Only the row is asked for again: a set of thousands takes its time. A row with problems may have had one with its words. */
  async saveCaption(row, words) {
    row.caption = words
    const captions = { [row.key]: words }
    if (row.problems.length) return void (await this.change("captions", { captions }))
    const told = await tell(this.set.id, "captions", { captions, brief: true }).catch(trouble)
    const now = told && this.set.rows.find(({ key }) => key === row.key)
    if (!now?.files[0] || !told.words[row.key]) return
    ;[now.caption, now.own] = told.words[row.key]
    this.draw()
  }

  /** From one caption to the next; what was typed is saved by leaving. */
  goOn(row, by) {
    const { rows } = this
    const at = rows.findIndex(({ key }) => key === row.key) + by
    if (at < 0 || at >= rows.length) return /** @type {HTMLElement|null} */ (document.activeElement)?.blur()
    const focus = () => this.list.reveal(at)?.querySelector("textarea")?.focus()
    focus()
  }

  async bringIn(picker) {
    const { projects } = await overview().catch((error) => (trouble(error), { projects: [] }))
    const chosen = await importFrom(projects, () => picker.click())
    if (!chosen) return
    const answer = await this.change("project", { ...chosen, slot: this.slot.slot })
    if (answer) toast(answer.done.join(", "))
  }

  async replace() {
    const chosen = await findAndReplace((what) => tell(this.set.id, "replace", { ...what, preview: true }).then(({ changes }) => changes))
    if (!chosen) return
    const answer = await this.change("replace", { ...chosen, preview: false })
    if (answer) toast(count(Object.keys(answer.changes).length, "{n} caption changed", "{n} captions changed"))
  }

  async examine() {
    find("#progress-text").textContent = t("The pair doctor is looking …")
    try {
      const { findings, text } = await tell(this.set.id, "examine", {})
      this.findings = new Map()
      for (const finding of findings) this.findings.set(finding.key, [...(this.findings.get(finding.key) ?? []), finding])
      this.draw()
      find("#progress-text").textContent = text.split("\n")[0]
    } catch (error) {
      find("#progress-text").textContent = ""
      trouble(error)
    }
  }

  /** @param {string[]} keys */
  async mend(keys) {
    for (const key of keys) this.findings.delete(key)
    const answer = await this.change("mend", { keys })
    if (answer) toast(answer.done.join(" "))
  }

  async export() {
    const { layouts } = await overview().catch((error) => (trouble(error), { layouts: [] }))
    const chosen = await exportAs(layouts)
    if (!chosen) return
    await tell(this.set.id, "export", chosen).then(({ text }) => tellAll(t("Exported"), text), trouble)
  }
}

/** A set as it is before its first change makes it: looking at a name leaves nothing on the disk. @param {string} name @returns {import("./api.mjs").PairSet} */
const unmade = (name) => ({
  id: "", name, instruction: "", trigger_word: "", problems: 0, general: [], notes: [], rows: [],
  slots: ["target", "control_1"].map((slot) => ({ slot, label: "", holds: "", count: 0 })),
})

async function chooseSet() {
  const { sets } = await overview()
  find("#sets").replaceChildren(...sets.map((id) => element("li", {}, element("a", { href: `?${new URLSearchParams({ set: id })}`, text: id.replaceAll("_", " ") }))))
  find(".choose").hidden = false
  find("#new-set").addEventListener("submit", async (event) => {
    event.preventDefault()
    await create(find("#new-name").value).then(({ id }) => location.assign(`?${new URLSearchParams({ set: id })}`), trouble)
  })
}

async function start() {
  await learn(ask)
  translate(document)
  const theme = query.get("theme")
  if (theme) document.documentElement.dataset.theme = theme
  if (query.get("embedded")) document.body.dataset.embedded = "1"
  find("#trouble-close").addEventListener("click", () => { find("#trouble").hidden = true })
  const pairing = find("#pairing")
  pairing.hidden = localStorage.getItem(NOTE) === "1"
  find("#pairing-close").addEventListener("click", () => { localStorage.setItem(NOTE, "1"); pairing.hidden = true })
  const name = query.get("set")
  if (!name) return chooseSet()
  const set = await stateOf(name).catch((error) => {
    if (error.status === 404) return unmade(name)
    throw error
  })
  find(".build").hidden = false
  new Panel(set)
}

start().catch(trouble)

/** @returns {NodeListOf<HTMLElement>} */
function viewChoices() {
  return document.querySelectorAll("[data-view]")
}
