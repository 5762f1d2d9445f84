/** The list shown when no project was asked for: where something waits for a verdict. */

import { pageAddress, projects } from "./api.mjs"
import { element, find } from "./dom.mjs"
import { plural, stageWord } from "./words.mjs"

export async function showProjects() {
  document.body.dataset.page = "projects"
  const found = await projects()
  const list = find("#projects")
  list.replaceChildren(...found.map(projectCard))
  find("#nothing").hidden = found.some(({ stages }) => stages.length)
}

function projectCard({ folder, name, stages }) {
  const rows = stages.map(({ stage, version, total, undecided }) => {
    const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("i", { class: "decided" }))
    bar.firstChild.style.width = `${total ? (100 * (total - undecided)) / total : 0}%`
    return element(
      "a",
      { class: undecided ? "stage waiting" : "stage", href: pageAddress({ project: folder, stage, version }) },
      element("b", { text: `${stageWord(stage)} ${version}` }),
      bar,
      element("span", { text: undecided ? `${plural(undecided, "image")} of ${total} to decide` : `${plural(total, "image")}, all decided` }),
    )
  })
  if (!rows.length) rows.push(element("p", { class: "quiet", text: "No candidates yet." }))
  return element("li", { class: "project" }, element("h2", { text: name }), ...rows)
}
