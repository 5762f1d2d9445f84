/** The review page: one set of candidates, or the list of projects. Puts the parts together; each of them is a file beside this one. */

import { asker, ServerError, ask, exported, listen, listing, pulse, tell, unreachable } from "./api.mjs"
import { decideTogether } from "./bulk.mjs"
import { button, element, find, openDialog } from "./dom.mjs"
import { FILTERS } from "./filters.mjs"
import { Finder } from "./finder.mjs"
import { Grid } from "./grid.mjs"
import { Header, summary } from "./header.mjs"
import { commandsOf, listenToKeys, writeHelp } from "./keys.mjs"
import { count, learn, mark, t, translate } from "./lang.mjs"
import { Outbox } from "./outbox.mjs"
import { passReport } from "./pass_report.mjs"
import { again, settled } from "./pictures.mjs"
import { showProjects } from "./projects.mjs"
import { ReasonBar } from "./reason_bar.mjs"
import { openRepair } from "./repair.mjs"
import { Memory, Pace, goOnFrom, resumeLine, reviewer, setReviewer, writtenReviewer } from "./session.mjs"
import { ReviewStore } from "./store.mjs"
import { QUESTIONS, Questions, showCoverage } from "./strict.mjs"
import { Sync } from "./sync.mjs"
import { Viewer } from "./viewer.mjs"

const AWAY = mark("ComfyUI does not answer. This page goes on by itself as soon as it is back; verdicts that were not saved yet are kept.")
const RETRY_MS = 2_000
const HEAD = 48 // candidates that a visit begins with, where there are many; the list of all follows
const HEAD_MS = 1_500 // how long their pictures go before it
const CLOSE = "flenwheel.close" // said to the page that holds this one

/** @param {import("./api.mjs").CandidateSet} set @param {import("./api.mjs").Way} way @param {string|null} wanted key of the candidate to begin with */
async function review(set, way, wanted) {
  document.body.dataset.page = "review"
  const name = `${set.project}/${set.stage}/${set.version}`
  const outbox = new Outbox(name, (parcel) => post(set, parcel), () => way)
  const store = new ReviewStore(outbox)
  const pace = new Pace()
  const memory = new Memory(set, way)
  const header = new Header(store, outbox, set, way, { pace, suggested: () => together(store.view, "suggested") })
  const viewer = new Viewer(store, set, { label, repair, closed: () => find("#grid").focus({ preventScroll: true }) })
  const covered = () => (find("#reason-bar").hidden ? 0 : find("#reason-bar").offsetHeight + 10)
  const grid = new Grid(find("#grid"), store, set, { open: () => viewer.open(), label }, { covered })
  const finder = new Finder(store, set, (message) => header.complain(message))
  const questions = way.pass === "strict" ? new Questions(store) : null
  const reasons = new ReasonBar(store, set, { answered: () => store.goTo(store.nextUndecided()) })
  const sync = new Sync(store, outbox, { ask: (part) => listing(set, way, part), pulse: (walk) => pulse(set, walk), complain: (message) => header.complain(message), saved: () => viewer.forgetHistory(), returned })

  function returned(number) {
    header.say(count(number, "{n} correction came back. Look at it under Corrections.", "{n} corrections came back. Look at them under Corrections."))
    viewer.draw()
  }

  /** @param {import("./words.mjs").Label|null} verdict */
  function label(verdict) {
    reasons.stop()
    viewer.saveNote()
    if (store.selected.size > 1) return together(store.selection, verdict)
    const candidate = store.get(store.current)
    if (!candidate) return
    const answered = verdict && questions?.with(verdict)
    if (answered && answered.objection) return header.say(answered.objection)
    if (answered && verdict !== "good" && ![...answered.reasons, ...candidate.reasons].length) return reasons.require(candidate.key, verdict, answered.answers)
    const last = store.counts.undecided === 1 && !candidate.label
    pace.tick(performance.now())
    store.label(candidate.key, verdict, answered ? answered.reasons : [], answered ? answered.answers : undefined)
    if (verdict) store.goTo(store.nextUndecided())
    if (verdict && last) header.say(t("All decided: {summary}. M shows how it went.", { summary: summary(store) }))
  }

  function together(candidates, verdict) {
    decideTogether(store, set, candidates, verdict, (number) => {
      store.select(false)
      header.say(count(number, "{n} image changed. U takes it back.", "{n} images changed. U takes them back."))
      find("#grid").focus({ preventScroll: true })
    })
  }

  function repair() {
    const candidate = store.get(store.current)
    if (candidate) openRepair(store, set, candidate, { reviewer: way.reviewer, say: (message) => header.say(message), changed: () => sync.look() })
  }

  async function proceed() {
    if (outbox.size) return header.say(t("Waits until everything is saved"))
    const { undecided } = store.counts
    if (undecided && !(await agreed(count(undecided, "{n} image is undecided. Continue anyway?", "{n} images are undecided. Continue anyway?")))) return
    try {
      await tell(set, "continue", asker())
      header.say(t("Queued. The graph goes on from here."))
    } catch (error) {
      header.complain(error instanceof ServerError ? error.message : t("ComfyUI does not answer. Start it, then press Continue again."))
    }
  }

  function exporting() {
    exportDialog(store, set, (message) => header.complain(message))
  }

  const does = {
    label,
    repair,
    proceed: () => !find("#continue").disabled && void proceed(),
    exporting,
    resize: (by) => grid.resize(by),
    suggested: () => store.filter === "suggested" && together(store.view, "suggested"),
    coverage: () => void showCoverage(set, way.reviewer, passReport(store, pace.words(0)), (message) => header.complain(message)),
    nextFilter: () => {
      const shown = FILTERS.filter(({ always, holds }) => always || store.candidates.some(holds))
      store.choose({ filter: shown[(shown.findIndex(({ name: known }) => known === store.filter) + 1) % shown.length].name })
    },
    note: () => {
      viewer.open()
      find("#note").focus()
    },
    back: () => {
      if (find("#help").open) find("#help").close()
      else if (finder.isOpen) finder.toggle(false)
      else if (viewer.isOpen) viewer.close()
      else if (store.selected.size) store.select(false)
      else if (parent !== window) parent.postMessage(CLOSE, location.origin)
    },
  }

  for (const [id, action] of Object.entries({ continue: proceed, undo: () => store.undo(), redo: () => store.redo(), export: exporting, coverage: does.coverage })) {
    find(`#${id}`).addEventListener("click", action)
  }
  document.addEventListener("mousedown", (event) => /** @type {HTMLElement} */ (event.target).closest("button") && event.preventDefault()) // the keys stay with the images
  addEventListener("online", () => outbox.retry())
  addEventListener("message", ({ source, data }) => source === parent && data?.flenwheel === "go" && store.goTo(data.key))
  addEventListener("beforeunload", (event) => {
    viewer.saveNote()
    if (outbox.size) event.preventDefault()
  })
  prepareHelp()
  const commands = commandsOf({ store, viewer, grid, reasons, finder, questions: questions && { keys: QUESTIONS, toggle: (asked) => questions.toggle(asked) }, help: find("#help"), does })
  writeHelp(commands)
  listenToKeys(commands, (key) => reasons.takes(key))

  const found = await outbox.open()
  const begins = !memory.kept && !wanted && !way.blind && way.pass !== "repeat"
  await untilAnswered(() => (begins ? sync.begin(HEAD) : sync.refresh()), header)
  if (found) header.say(count(found, "{n} verdict from an earlier visit is being saved.", "{n} verdicts from an earlier visit are being saved."))
  settleIn({ store, grid, viewer, header, memory, wanted })
  const keep = () => memory.keep(store, { size: grid.size, viewer: viewer.isOpen })
  store.addEventListener("change", keep)
  addEventListener("pagehide", keep)
  let connections = 0
  listen(set, {
    changed: (revision) => sync.look(revision),
    connected: () => {
      outbox.retry()
      if (!connections++) return
      sync.look() // broadcasts were missed
      again()
    },
    lost: () => {},
  })
  if (store.incomplete) await settled(HEAD_MS).then(() => sync.look())
  sync.watch()
}

/** Begin where the reviewer stopped: in this tab exactly, else at the first undecided image from there on. */
function settleIn({ store, grid, viewer, header, memory, wanted }) {
  const kept = memory.kept
  const { session } = store.state ?? {}
  if (kept) {
    grid.size = kept.size
    store.choose(kept.shown, wanted ?? kept.current)
    if (kept.viewer) viewer.open()
  } else if (!store.counts.undecided && store.counts.total) store.choose({ filter: "all" })
  if (wanted) store.goTo(wanted)
  else if (!kept) {
    const line = resumeLine(store)
    if (line) header.say(line)
    store.goTo(goOnFrom(store, session?.key))
  }
  find(viewer.isOpen ? "#stage" : "#grid").focus({ preventScroll: true })
}

/** @param {import("./api.mjs").CandidateSet} set @param {import("./outbox.mjs").Parcel} parcel */
function post(set, { what, batch, way, events }) {
  const { reviewer: name, pass } = way
  return tell(set, what, what === "labels" ? { reviewer: name, pass, batch, events } : { reviewer: name, pass, batch })
}

/** Ask again while the server is away, as it is after a restart. */
async function untilAnswered(asking, header) {
  for (;;) {
    try {
      await asking()
      return header.away("")
    } catch (error) {
      if (error instanceof ServerError && error.status < 500) throw error
      if (!(error instanceof ServerError) && !unreachable(error)) throw error
      header.away(error instanceof ServerError ? error.message : t(AWAY))
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
    }
  }
}

/** @param {string} question @returns {Promise<boolean>} */
function agreed(question) {
  return new Promise((resolve) => {
    const yes = button({ class: "primary", autofocus: true, on: { click: () => (resolve(true), dialog.close()) } }, t("Continue"), element("kbd", { text: "Enter" }))
    const no = button({ class: "quiet", on: { click: () => dialog.close() } }, t("Cancel"), element("kbd", { text: "Esc" }))
    const dialog = openDialog(question, element("div", { class: "dialog-end" }, no, yes))
    dialog.addEventListener("close", () => resolve(false))
    yes.focus()
  })
}

/** What is shown now, as a file for people. */
function exportDialog(store, set, complain) {
  const title = element("input", { value: `${store.project.name} – ${t(FILTERS.find(({ name }) => name === store.filter)?.word ?? "")}`, maxlength: 120, "aria-label": t("Title") })
  const make = async (format, ending) => {
    try {
      const file = await exported(set, { keys: store.view.map(({ key }) => key), format, title: title.value })
      const link = element("a", { href: URL.createObjectURL(file), download: `${title.value.replace(/[^\p{L}\p{N}]+/gu, "_")}.${ending}` })
      link.click()
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
      dialog.close()
    } catch (error) {
      if (!(error instanceof ServerError) && !unreachable(error)) throw error
      dialog.close()
      complain(error instanceof ServerError ? error.message : t("ComfyUI does not answer."))
    }
  }
  const dialog = openDialog(
    count(store.view.length, "Export {n} image", "Export {n} images"),
    element("label", {}, element("span", { text: t("Title") }), title),
    element("p", { class: "quiet", text: t("What the filter shows now. The file holds its pictures and needs no connection.") }),
    element("div", { class: "dialog-end" }, button({ class: "quiet", text: t("Contact sheet (PNG)"), on: { click: () => make("png", "png") } }), button({ class: "primary", text: t("Report (HTML)"), autofocus: true, on: { click: () => make("html", "html") } })),
  )
}

function prepareHelp() {
  const name = find("#reviewer")
  name.value = writtenReviewer()
  name.addEventListener("change", () => {
    setReviewer(name.value)
    location.reload() // undo, session and history belong to a name
  })
  for (const opener of document.querySelectorAll(".help-open")) opener.addEventListener("click", () => find("#help").showModal())
  find("#help-close").addEventListener("click", () => find("#help").close())
}

/** Inside ComfyUI the graph is behind the page; a tab of its own is what it can lead to. */
function leadOut() {
  const own = new URL(location.href)
  for (const name of ["embedded", "theme", "key"]) own.searchParams.delete(name)
  Object.assign(find("#to-graph"), { href: own.href, target: "_blank", textContent: t("Own tab") })
}

async function begin() {
  const asked = new URLSearchParams(location.search)
  document.documentElement.dataset.theme = asked.get("theme") ?? ""
  await learn(ask)
  translate(document)
  if (asked.has("embedded")) leadOut()
  const { project, stage, version } = Object.fromEntries(asked)
  if (!(project && stage && version)) return showProjects()
  const pass = /** @type {import("./api.mjs").Pass} */ (asked.get("pass") || "first")
  return review({ project, stage, version }, { reviewer: reviewer(), pass, blind: asked.get("blind") === "1" }, asked.get("key"))
}

begin().catch((error) => {
  find("#trouble").hidden = false
  find("#trouble-close").hidden = true
  find("#trouble-text").textContent = error instanceof ServerError ? error.message : unreachable(error) ? t(AWAY) : t("This page has a fault: {message}", { message: error.message })
  if (!(error instanceof ServerError)) throw error
})
