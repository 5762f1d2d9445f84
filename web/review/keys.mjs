/**
 * What each key does: one table, read by the listener and by the help. A key that is typed into a field, or pressed on a button or link that
 * would react to it, is left alone.
 */

import { element, find } from "./dom.mjs"
import { mark, t } from "./lang.mjs"
import { LABELS } from "./words.mjs"

/**
 * @typedef {{keys: string[], shown?: string, word: string, part?: string, does: () => void, released?: () => void}} Command
 * `keys` are KeyboardEvent.key values, letters in lower case; "Mod+" stands for Ctrl or Cmd, "Shift+" is named for arrows and with Mod.
 * A command without `shown` is not in the help. `released` is called when a held key is let go.
 */

const nameOf = ({ key, ctrlKey, metaKey, altKey, shiftKey }) => {
  const name = key.length === 1 ? key.toLowerCase() : key
  const modified = ctrlKey || metaKey
  const shift = shiftKey && (modified || key.length > 1) && key !== "Shift" ? "Shift+" : ""
  return altKey ? "" : `${modified ? "Mod+" : ""}${shift}${name}`
}

const FIELDS = "input:not([type=checkbox], [type=range], [type=file]), textarea, select"
const REACTS = "button, a, summary, label, input, [role=slider]"
const REPEATS = /(Arrow|Page)/

/**
 * @param {Command[]} commands
 * @param {(name: string) => boolean} first asked before the table; true when it has used the key
 */
export function listenToKeys(commands, first) {
  const table = new Map(commands.flatMap((command) => command.keys.map((key) => [key, command])))
  document.addEventListener("keydown", (event) => {
    const name = nameOf(event)
    const target = /** @type {HTMLElement} */ (event.target)
    const dialog = find("dialog[open]")
    if (event.isComposing || !name || (dialog && !(dialog.id === "help" && name === "?"))) return
    if (target.matches(FIELDS)) {
      const done = name === "Escape" || (name === "Mod+Enter" && target.matches("textarea"))
      if (!done) return
      target.blur() // which keeps what was typed
      event.preventDefault()
      find(find("#viewer").hidden ? "#grid" : "#stage").focus()
      return
    }
    if ((name === " " || name === "Enter") && target.closest(REACTS)) return
    if (!first(name)) {
      const command = table.get(name)
      if (!command) return
      if (event.repeat && !REPEATS.test(name)) return event.preventDefault() // a held key is one verdict
      command.does()
    }
    event.preventDefault()
  })
  document.addEventListener("keyup", ({ key }) => table.get(key.toLowerCase())?.released?.())
  addEventListener("blur", () => commands.forEach(({ released }) => released?.()))
}

/** @param {Command[]} commands */
export function writeHelp(commands) {
  const parts = new Map()
  for (const command of commands.filter(({ shown }) => shown)) parts.set(command.part ?? "", [...(parts.get(command.part ?? "") ?? []), command])
  const written = [...parts].map(([part, inside]) =>
    element(
      "section",
      {},
      element("h3", { text: t(part) }),
      element(
        "dl",
        {},
        ...inside.flatMap(({ shown, word }) => [element("dt", {}, ...shown.split(" ").map((key) => element("kbd", { text: key }))), element("dd", { text: t(word) })]),
      ),
    ),
  )
  find("#help-keys").replaceChildren(...written)
}

const [DECIDE, MOVE, LOOK, ROOM] = [mark("Decide"), mark("Move"), mark("Look"), mark("The room")]
const nothing = () => {}

/**
 * @param {any} parts of the page
 * @returns {Command[]}
 */
export function commandsOf({ store, viewer, grid, reasons, finder, questions, help, does }) {
  const rows = () => (viewer.isOpen ? 1 : grid.columns)
  const move = (by, x = 0, y = 0) => (viewer.isOpen && (x || y) && viewer.look.zoomed ? viewer.look.nudge(x, y) : store.move(by))
  return [
    ...LABELS.map(({ label: verdict, word, key, letter }) => ({
      keys: [key, letter],
      shown: `${key} ${letter.toUpperCase()}`,
      word,
      part: DECIDE,
      does: () => does.label(verdict),
    })),
    { keys: ["0"], shown: "0", word: mark("Withdraw the verdict"), part: DECIDE, does: () => does.label(null) },
    { keys: ["r"], shown: "R", word: mark("Reasons: then 1–9"), part: DECIDE, does: () => reasons.toggle() },
    ...(questions?.keys ?? []).map(({ key, name }) => ({ keys: [key], word: "", does: () => questions.toggle(name) })),
    ...(questions ? [{ keys: [], shown: "5 6 7 8", word: mark("Strict pass: answer a question with no"), part: DECIDE, does: nothing }] : []),
    { keys: ["q"], shown: "Q", word: mark("Under “Suggested”: accept all of them"), part: DECIDE, does: does.suggested },
    { keys: ["t"], shown: "T", word: mark("Write a note; Esc when done"), part: DECIDE, does: does.note },
    { keys: ["e"], shown: "E", word: mark("Repair: prompt, mask, or your own file"), part: DECIDE, does: does.repair },
    { keys: ["u", "Mod+z"], shown: "U Ctrl+Z", word: mark("Undo, step by step, also after a restart"), part: DECIDE, does: () => store.undo() },
    { keys: ["y", "Mod+Shift+z", "Mod+y"], shown: "Y Ctrl+Shift+Z", word: mark("Redo"), part: DECIDE, does: () => store.redo() },

    { keys: ["ArrowLeft"], shown: "← → ↑ ↓", word: mark("Move; never a verdict"), part: MOVE, does: () => move(-1, -1, 0) },
    { keys: ["ArrowRight"], word: "", does: () => move(1, 1, 0) },
    { keys: ["ArrowUp"], word: "", does: () => move(-rows(), 0, -1) },
    { keys: ["ArrowDown"], word: "", does: () => move(rows(), 0, 1) },
    { keys: ["PageUp"], word: "", does: () => store.move(-rows() * grid.page) },
    { keys: ["PageDown"], word: "", does: () => store.move(rows() * grid.page) },
    { keys: ["Home"], word: "", does: () => store.move(-Infinity) },
    { keys: ["End"], word: "", does: () => store.move(Infinity) },
    { keys: ["n"], shown: "N", word: mark("Next undecided"), part: MOVE, does: () => store.goTo(store.nextUndecided()) },
    { keys: ["Shift+ArrowLeft"], shown: "Shift+→", word: mark("Select a range; a verdict then goes to all of it"), part: MOVE, does: () => store.move(-1, true) },
    { keys: ["Shift+ArrowRight"], word: "", does: () => store.move(1, true) },
    { keys: ["Shift+ArrowUp"], word: "", does: () => store.move(-rows(), true) },
    { keys: ["Shift+ArrowDown"], word: "", does: () => store.move(rows(), true) },
    { keys: ["Shift+Home"], word: "", does: () => store.move(-Infinity, true) },
    { keys: ["Shift+End"], word: "", does: () => store.move(Infinity, true) },
    { keys: ["v"], shown: "V", word: mark("Select or unselect one"), part: MOVE, does: () => store.toggleSelected(store.current) },
    { keys: ["Mod+a"], shown: "Ctrl+A", word: mark("Select all that is shown"), part: MOVE, does: () => store.select(true) },

    { keys: ["Enter"], shown: "Enter", word: mark("Large view, and back"), part: LOOK, does: () => (viewer.isOpen ? viewer.close() : viewer.open()) },
    { keys: [" "], shown: "Space", word: mark("Large view; there 1:1 on the same spot, from image to image"), part: LOOK, does: () => (viewer.isOpen ? viewer.look.toggleZoom() : viewer.open()) },
    { keys: ["a"], shown: "A", word: mark("Hold: the source in its place"), part: LOOK, does: () => viewer.isOpen && viewer.look.hold(true), released: () => viewer.look.hold(false) },
    { keys: ["s"], shown: "S", word: mark("Source and candidate with a divider; , and . move it"), part: LOOK, does: () => (viewer.isOpen ? viewer.look.toggleSplit() : (viewer.open(), viewer.look.toggleSplit())) },
    { keys: [","], word: "", does: () => viewer.isOpen && viewer.look.nudge(-1, 0) },
    { keys: ["."], word: "", does: () => viewer.isOpen && viewer.look.nudge(1, 0) },
    { keys: ["-"], shown: "- +", word: mark("Smaller, larger cards"), part: LOOK, does: () => does.resize(-1) },
    { keys: ["+", "="], word: "", does: () => does.resize(1) },

    { keys: ["/"], shown: "/", word: mark("Find: words, prompt, score, reason; keep a view"), part: ROOM, does: () => finder.toggle(true) },
    { keys: ["f"], shown: "F", word: mark("Next filter"), part: ROOM, does: does.nextFilter },
    { keys: ["m"], shown: "M", word: mark("How the pass went, what the set covers, what is missing"), part: ROOM, does: does.coverage },
    { keys: ["p"], shown: "P", word: mark("Report or contact sheet of what is shown"), part: ROOM, does: does.exporting },
    { keys: ["Mod+Enter"], shown: "Ctrl+Enter", word: mark("Continue the graph"), part: ROOM, does: does.proceed },
    { keys: ["Escape"], shown: "Esc", word: mark("Back"), part: ROOM, does: does.back },
    { keys: ["?"], shown: "?", word: mark("This help"), part: ROOM, does: () => (help.open ? help.close() : help.showModal()) },
  ]
}
