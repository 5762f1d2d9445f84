/** A box of ours on a node, by the rules both renderers have. Loaded by ComfyUI as an extension too, which does nothing. */

/** `options.serialize` keeps a widget out of the prompt, `serialize` out of the workflow. */
export function keepOut(widget) {
  widget.serialize = false
  widget.options = Object.assign(widget.options ?? {}, { serialize: false })
}

/** An empty box as the last widget of a node. @returns {HTMLElement} */
export function addBox(node, name, type, height) {
  const host = document.createElement("div")
  Object.assign(host.style, { position: "relative", width: "100%", height: "100%", minHeight: `${height}px` })
  // Nodes 2.0 gives a row the height of its content: the content is absolute, so that a long one does not blow the node up
  const widget = node.addDOMWidget(name, type, host, { serialize: false, hideOnZoom: false, margin: 6, getMinHeight: () => height })
  keepOut(widget)
  // the classic renderer keeps a stale width after the side panel was open (frontend 1.47)
  Object.defineProperty(widget, "width", { get: () => undefined, set() {}, configurable: true })
  return host
}
