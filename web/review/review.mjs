/** The review page: one set of candidates, or the list of projects. Puts the parts together; each of them is a file beside this one. */

import { ServerError, listen, listing, postLabels, proceed } from "./api.mjs"
import { find } from "./dom.mjs"
import { Grid } from "./grid.mjs"
import { Header, summary } from "./header.mjs"
import { listenToKeys, writeHelp } from "./keys.mjs"
import { Outbox } from "./outbox.mjs"
import { showProjects } from "./projects.mjs"
import { ReasonBar } from "./reason_bar.mjs"
import { ReviewStore } from "./store.mjs"
import { Viewer } from "./viewer.mjs"
import { LABELS, plural } from "./words.mjs"

const REVIEWER = "flenwheel.reviewer"
const AWAY = "ComfyUI does not answer. This page goes on by itself as soon as it is back; verdicts that were not saved yet are kept."
const RETRY_MS = 2_000
const SETTLE_MS = 120 // several broadcasts in a row cause one look at the server

const ANY = "any" // no revision the server has: look in any case

const reviewer = () => localStorage.getItem(REVIEWER) || "reviewer"

/** @param {import("./api.mjs").CandidateSet} set */
async function review(set) {
  document.body.dataset.page = "review"
  const outbox = new Outbox(`${set.project}/${set.stage}/${set.version}`, (events) => postLabels(set, reviewer(), events))
  const store = new ReviewStore(outbox)
  const header = new Header(store, outbox, set)
  const viewer = new Viewer(store, set, { label, closed: () => find("#grid").focus({ preventScroll: true }) })
  const grid = new Grid(find("#grid"), store, set, { open: () => viewer.open(), label })
  const reasons = new ReasonBar(store, set)

  function label(verdict) {
    reasons.stop()
    viewer.saveNote()
    const { current } = store
    if (!current) return
    const last = store.counts.undecided === 1 && !store.get(current)?.label
    store.label(current, verdict)
    if (verdict) store.goTo(store.nextUndecided())
    if (verdict && last) header.say(`All decided: ${summary(store)}.`)
  }

  let known = "" // the revision on the screen
  let heard = "" // the newest one a broadcast or an answer has named since the last look
  let settling = 0

  async function refresh() {
    let saved
    do {
      saved = outbox.acknowledged
      heard = ""
      const answer = await listing(set)
      if (saved !== outbox.acknowledged) continue // asked before, answered after a verdict was stored: ask again
      known = answer.revision
      store.load(answer)
    } while (saved !== outbox.acknowledged)
    if (heard) look(heard)
  }

  /** Look at the server, unless what it has is on the screen by then. @param {string} revision */
  function look(revision) {
    heard = revision
    clearTimeout(settling)
    settling = setTimeout(() => heard !== known && refresh().catch(complain), SETTLE_MS)
  }

  function complain(error) {
    if (!(error instanceof ServerError)) return // not reachable: the bar says so as soon as a verdict waits, and the socket tries again
    header.complain(error.message)
  }

  outbox.addEventListener("saved", ({ detail }) => {
    // revisions count verdicts: a step as long as ours means that nobody else was at work in between
    if (Number(detail.revision) - Number(known) === detail.count) known = detail.revision
    look(detail.revision)
    viewer.forgetHistory()
  })
  outbox.addEventListener("adopted", () => look(ANY))
  outbox.addEventListener("refused", ({ detail }) => {
    header.complain(`A verdict was not accepted: ${detail.message}`)
    look(ANY)
  })
  addEventListener("online", () => outbox.retry())
  addEventListener("beforeunload", (event) => {
    viewer.saveNote()
    if (outbox.size) event.preventDefault()
  })

  find("#continue").addEventListener("click", async () => {
    try {
      await proceed(set)
      header.say("Queued. The graph goes on from here.")
    } catch (error) {
      header.complain(error instanceof ServerError ? error.message : "ComfyUI does not answer. Start it, then press Continue again.")
    }
  })
  find("#undo").addEventListener("click", () => store.undo())
  document.addEventListener("mousedown", (event) => event.target.closest("button") && event.preventDefault()) // the keys stay with the images
  prepareHelp()
  const commands = commandsOf({ store, viewer, grid, reasons, label })
  writeHelp(commands)
  listenToKeys(commands, (key) => reasons.takes(key))

  const found = await outbox.open()
  await untilAnswered(refresh, header)
  if (found) header.say(`${plural(found, "verdict")} from an earlier visit ${found === 1 ? "is" : "are"} being saved.`)
  if (!store.counts.undecided && store.counts.total) store.choose({ filter: "all" })
  find("#grid").focus({ preventScroll: true })
  let connections = 0
  listen(set, {
    changed: look,
    connected: () => {
      outbox.retry()
      if (connections++) look(ANY) // broadcasts were missed
    },
    lost: () => {},
  })
}

/** Ask again while the server is away, as it is after a restart. */
async function untilAnswered(ask, header) {
  for (;;) {
    try {
      await ask()
      return header.complain("")
    } catch (error) {
      if (error instanceof ServerError && error.status < 500) throw error
      if (!(error instanceof ServerError || error instanceof TypeError || error instanceof DOMException)) throw error
      header.complain(error instanceof ServerError ? error.message : AWAY)
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
    }
  }
}

/** @returns {import("./keys.mjs").Command[]} */
function commandsOf({ store, viewer, grid, reasons, label }) {
  const rows = () => (viewer.isOpen ? 1 : grid.columns)
  const help = find("#help")
  return [
    ...LABELS.map(({ label: verdict, word, key, letter }) => ({
      keys: [key, letter],
      shown: `${key} ${letter.toUpperCase()}`,
      word: `${word}, then the next undecided`,
      does: () => label(verdict),
    })),
    { keys: ["0"], shown: "0", word: "Withdraw the verdict", does: () => label(null) },
    { keys: ["u", "Mod+z"], shown: "U Ctrl+Z", word: "Undo, step by step", does: () => store.undo() },
    { keys: ["r"], shown: "R", word: "Reasons: then 1–9", does: () => reasons.toggle() },
    {
      keys: ["n"],
      shown: "N",
      word: "Write a note; Esc when done",
      does: () => {
        viewer.open()
        find("#note").focus()
      },
    },
    { keys: ["ArrowLeft"], shown: "← → ↑ ↓", word: "Move; never a verdict", does: () => store.move(-1) },
    { keys: ["ArrowRight"], word: "", does: () => store.move(1) },
    { keys: ["ArrowUp"], word: "", does: () => store.move(-rows()) },
    { keys: ["ArrowDown"], word: "", does: () => store.move(rows()) },
    { keys: ["PageUp"], word: "", does: () => store.move(-rows() * grid.page) },
    { keys: ["PageDown"], word: "", does: () => store.move(rows() * grid.page) },
    { keys: ["Home"], word: "", does: () => store.move(-Infinity) },
    { keys: ["End"], word: "", does: () => store.move(Infinity) },
    { keys: [" ", "Enter"], shown: "Space Enter", word: "Large view, with the source", does: () => (viewer.isOpen ? viewer.close() : viewer.open()) },
    { keys: ["Escape"], shown: "Esc", word: "Back", does: () => (help.open ? help.close() : viewer.isOpen && viewer.close()) },
    { keys: ["?"], shown: "?", word: "This help", does: () => (help.open ? help.close() : help.showModal()) },
  ]
}

function prepareHelp() {
  const name = find("#reviewer")
  name.value = localStorage.getItem(REVIEWER) ?? ""
  name.addEventListener("change", () => localStorage.setItem(REVIEWER, name.value.trim()))
  for (const opener of document.querySelectorAll(".help-open")) opener.addEventListener("click", () => find("#help").showModal())
  find("#help-close").addEventListener("click", () => find("#help").close())
}

const { project, stage, version } = Object.fromEntries(new URLSearchParams(location.search))
const page = project && stage && version ? review({ project, stage, version }) : showProjects()
page.catch((error) => {
  find("#trouble").hidden = false
  find("#trouble-close").hidden = true
  find("#trouble-text").textContent = error instanceof ServerError ? error.message : error instanceof TypeError ? AWAY : `This page has a fault: ${error.message}`
  if (!(error instanceof ServerError)) throw error
})
