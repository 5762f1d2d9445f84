/**
 * The live histogram on Identity Filter: how many images the widgets would keep as they stand, before anything runs. Figures come from our route
 * (nodes/spread_routes.py), which answers from the scores of the last run; nothing of it is saved in the workflow.
 */

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { addBox } from "./box.js"

const FILTER = "FLEN_IdentityFilter"
const WIDGETS = ["threshold", "keep", "amount"]
const HEIGHT_PX = 150
const WAIT_MS = 40 // a slider moves faster than anybody reads
const KEPT = "#54be76"
const LEFT_OUT = "#e86860"

/** @type {WeakMap<object, Live>} */
const shown = new WeakMap()

/** @param {string} name @param {Record<string, string>} style @param {string} text */
function element(name, style = {}, text = "") {
  const made = document.createElement(name)
  Object.assign(made.style, style)
  made.textContent = text
  return made
}

class Live {
  constructor(node) {
    this.node = node
    this.spread = ""
    this.asked = 0
    this.timer = 0
    const host = addBox(node, "flenwheel_spread", "FLENWHEEL_SPREAD", HEIGHT_PX)
    this.root = element("div", {
      position: "absolute", inset: "0", boxSizing: "border-box", padding: "6px 8px", borderRadius: "6px", overflow: "hidden",
      display: "flex", flexDirection: "column", gap: "4px",
      background: "var(--comfy-input-bg, #222)", color: "var(--input-text, #ddd)", font: "12px/1.35 system-ui, sans-serif",
    })
    this.root.dataset.flenwheel = "spread"
    this.words = element("div")
    this.words.setAttribute("aria-live", "polite")
    this.bars = element("div", { position: "relative", flex: "1", minHeight: "0", display: "flex", alignItems: "flex-end", gap: "1px" })
    this.bars.setAttribute("role", "img")
    const axis = element("div", { display: "flex", justifyContent: "space-between", opacity: "0.7", fontSize: "11px" })
    axis.append(...["0", "0.2", "0.4", "0.6", "0.8", "1"].map((text) => element("span", {}, text)))
    this.root.append(this.words, this.bars, axis)
    host.append(this.root)
    for (const widget of node.widgets.filter(({ name }) => WIDGETS.includes(name))) {
      const { callback } = widget
      widget.callback = (...told) => {
        const answer = callback?.apply(widget, told)
        this.soon()
        return answer
      }
    }
    const [width, height] = node.computeSize()
    node.setSize([Math.max(node.size[0], width, 340), Math.max(node.size[1], height)])
  }

  /** @param {string} spread names the scores of a run */
  follow(spread) {
    this.spread = spread
    void this.ask()
  }

  soon() {
    clearTimeout(this.timer)
    this.timer = setTimeout(() => void this.ask(), WAIT_MS)
  }

  async ask() {
    if (!this.spread) return
    const number = ++this.asked
    const values = this.node.widgets.filter(({ name }) => WIDGETS.includes(name)).map(({ name, value }) => [name, String(value)])
    const answer = await api.fetchApi(`/flenwheel/spread/${this.spread}?${new URLSearchParams(values)}`)
    const told = await answer.json().catch(() => ({})) // a proxy may answer with a page
    if (number !== this.asked) return // a newer question is under way
    if (answer.ok) this.draw(told)
    else this.say(told.error ?? "No figures.")
  }

  say(text) {
    this.words.textContent = text
    this.bars.replaceChildren()
  }

  draw({ words, kept_from, bins }) {
    this.words.textContent = words
    this.bars.setAttribute("aria-label", words)
    const highest = Math.max(1, ...bins.map(({ kept, left_out }) => kept + left_out))
    const line = element("div", {
      position: "absolute", top: "0", bottom: "0", left: `${Math.min(1, kept_from) * 100}%`, width: "2px", marginLeft: "-1px",
      background: "currentColor", opacity: kept_from > 1 ? "0" : "0.8",
    })
    const bars = bins.map(({ from, kept, left_out }) => {
      const bar = element("div", { flex: "1", display: "flex", flexDirection: "column", justifyContent: "flex-end", height: "100%" })
      bar.title = `${from.toFixed(3)}: ${kept + left_out}`
      bar.append(
        element("div", { background: KEPT, height: `${(kept / highest) * 100}%` }),
        element("div", { background: LEFT_OUT, height: `${(left_out / highest) * 100}%` }),
      )
      return bar
    })
    this.bars.replaceChildren(...bars, line)
  }
}

/** @param {object} node @param {any} output the ui part of the node's result */
function show(node, output) {
  const spread = output?.flen_spread?.[0]
  if (typeof spread !== "string" || !/^[0-9a-f]+$/.test(spread)) return
  const live = shown.get(node) ?? new Live(node)
  shown.set(node, live)
  live.follow(spread)
}

app.registerExtension({
  name: "FLENwheel.IdentityFilter",
  nodeCreated(node) {
    if (node.comfyClass !== FILTER) return
    const executed = node.onExecuted
    node.onExecuted = function (output, ...rest) {
      executed?.call(this, output, ...rest)
      show(this, output)
    }
    setTimeout(() => show(node, app.nodeOutputs?.[String(node.id)])) // a switch of tabs makes new nodes and keeps the outputs of the last run
  },
})
