/** The list shown when no project was asked for: where something waits for a verdict. */

import { pageAddress, projects } from "./api.mjs"
import { element, find } from "./dom.mjs"
import { keepEmbedded } from "./header.mjs"
import { count, t } from "./lang.mjs"
import { stageWord } from "./words.mjs"

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
      { class: undecided ? "stage waiting" : "stage", href: keepEmbedded(pageAddress({ project: folder, stage, version })) },
      element("b", { text: `${stageWord(stage)} ${version}` }),
      bar,
      element("span", { text: undecided ? t("{n} of {total} to decide", { n: undecided, total }) : count(total, "{n} image, decided", "{n} images, all decided") }),
    )
  })
  if (!rows.length) rows.push(element("p", { class: "quiet", text: t("No candidates yet.") }))
  return element("li", { class: "project" }, element("h2", { text: name }), ...rows)
}
