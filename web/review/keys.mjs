/**
 * What each key does: one table, read by the listener and by the help. A key that is typed into a field, or pressed on a button or link that
 * would react to it, is left alone.
 */

import { element, find } from "./dom.mjs"

/**
 * @typedef {{keys: string[], shown?: string, word: string, does: () => void}} Command
 * `keys` are KeyboardEvent.key values, letters in lower case; "Mod+" stands for Ctrl or Cmd. A command without `shown` is not in the help.
 */

const nameOf = ({ key, ctrlKey, metaKey, altKey }) => {
  const name = key.length === 1 ? key.toLowerCase() : key
  return altKey ? "" : ctrlKey || metaKey ? `Mod+${name}` : name
}

const FIELDS = "input, textarea, select"
const REACTS = "button, a, summary, label"

/**
 * @param {Command[]} commands
 * @param {(name: string) => boolean} first asked before the table; true when it has used the key
 */
export function listenToKeys(commands, first) {
  const table = new Map(commands.flatMap((command) => command.keys.map((key) => [key, command])))
  document.addEventListener("keydown", (event) => {
    const name = nameOf(event)
    const target = /** @type {HTMLElement} */ (event.target)
    if (event.isComposing || !name || (find("#help").open && name !== "Escape" && name !== "?")) return
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
      if (event.repeat && !name.startsWith("Arrow") && !name.startsWith("Page")) return event.preventDefault() // a held key is one verdict
      command.does()
    }
    event.preventDefault()
  })
}

/** @param {Command[]} commands */
export function writeHelp(commands) {
  find("#help-keys").replaceChildren(
    ...commands
      .filter(({ shown }) => shown)
      .flatMap(({ shown = "", word }) => [
        element("dt", {}, ...shown.split(" ").map((key) => element("kbd", { text: key }))),
        element("dd", { text: word }),
      ]),
  )
}
