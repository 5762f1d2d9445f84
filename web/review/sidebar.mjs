/** The tab in ComfyUI's sidebar: what waits in which project, and the way there. */

import { ServerError, projects, unreachable } from "./api.mjs"
import { button, element } from "./dom.mjs"
import { t } from "./lang.mjs"
import { stageWord } from "./words.mjs"

/** How many images of all projects are undecided. */
export const undecidedTotal = async () => (await projects()).reduce((sum, { stages }) => sum + stages.reduce((all, { undecided }) => all + undecided, 0), 0)

/**
 * @param {HTMLElement} root @param {(set: import("./api.mjs").CandidateSet) => void} open
 * @returns {() => void} draws anew
 */
export function sidebar(root, open) {
  root.classList.add("flw", "flw-side")
  const draw = async () => {
    try {
      const found = await projects()
      root.replaceChildren(element("h2", { text: t("Review") }), ...(found.some(({ stages }) => stages.length) ? found.flatMap((project) => part(project, open)) : [element("p", { text: t("There is nothing to review yet. Run a graph with a Review Gate; its images then appear here.") })]))
    } catch (error) {
      if (!(error instanceof ServerError) && !unreachable(error)) throw error
      root.replaceChildren(element("p", { text: error instanceof ServerError ? error.message : t("ComfyUI does not answer.") }))
    }
  }
  void draw()
  return () => void draw()
}

function part({ folder, name, stages }, open) {
  if (!stages.length) return []
  const rows = stages.map(({ stage, version, total, undecided }) =>
    button(
      { class: undecided ? "set waiting" : "set", on: { click: () => open({ project: folder, stage, version }) } },
      element("span", { text: `${stageWord(stage)} ${version}` }),
      element("b", { text: undecided ? t("{n} of {total} to decide", { n: undecided, total }) : t("all decided") }),
    ),
  )
  return [element("h3", { text: name }), ...rows]
}
