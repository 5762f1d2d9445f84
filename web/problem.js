/** Why a node of ours failed is said on the node, word for word: ComfyUI's own message names only the node. Gone when the next run begins. */

import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"
import { addBox } from "./box.js"

const OURS = "FLEN_"
const NAME = "flenwheel_problem"
const HEIGHT_PX = 112 // six lines

/** @type {WeakMap<object, number>} how high the nodes were that say something */
const heights = new WeakMap()

/** @param {{node_id?: unknown, node_type?: unknown, exception_message?: unknown}} told */
function show(told) {
  if (typeof told?.node_type !== "string" || !told.node_type.startsWith(OURS) || typeof told.exception_message !== "string") return
  const node = app.graph.nodes.find(({ id }) => String(id) === String(told.node_id)) // not there: in a subgraph, or another graph is open
  if (!node) return
  remove(node)
  const words = Object.assign(document.createElement("div"), { textContent: told.exception_message.trim() })
  words.setAttribute("role", "alert")
  words.tabIndex = 0 // a long one is scrolled by keys
  Object.assign(words.style, {
    position: "absolute", inset: "0", boxSizing: "border-box", overflow: "auto", whiteSpace: "pre-wrap", userSelect: "text", cursor: "text",
    borderLeft: "4px solid #e5484d", borderRadius: "4px", padding: "6px 8px", background: "var(--comfy-input-bg, #222)", color: "var(--input-text, #ddd)",
    font: "12px/1.4 system-ui, sans-serif",
  })
  heights.set(node, node.size[1])
  addBox(node, NAME, "FLENWHEEL_PROBLEM", HEIGHT_PX).append(words)
  const [width, height] = node.computeSize()
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)])
  app.canvas?.setDirty(true, true)
}

/** @param {any} node */
function remove(node) {
  const widget = node.widgets?.find(({ name }) => name === NAME)
  if (!widget) return
  node.removeWidget(widget)
  node.setSize([node.size[0], heights.get(node)])
}

app.registerExtension({
  name: "FLENwheel.problem",
  setup() {
    api.addEventListener("execution_error", ({ detail }) => show(detail))
    api.addEventListener("execution_start", () => app.graph.nodes.forEach(remove))
  },
})
