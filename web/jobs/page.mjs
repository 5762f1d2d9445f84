/** The Jobs page: the list on one side, the chosen training on the other. Lies over ComfyUI in a frame, or in a window of its own. */

import { ask } from "../review/api.mjs"
import { find } from "../review/dom.mjs"
import { learn, translate } from "../review/lang.mjs"
import { jobs } from "./api.mjs"
import { jobList } from "./list.mjs"
import { Monitor } from "./monitor.mjs"

const asked = new URLSearchParams(location.search)
const embedded = asked.has("embedded")
/** @type {Monitor|null} */
let monitor = null
/** @type {import("./api.mjs").JobName|null} */
let shown = null

function show(name) {
  if (shown?.id === name.id && shown?.project === name.project) return
  shown = name
  monitor?.dispose()
  monitor = new Monitor(find("#monitor"), name, embedded ? { tryIt: (job) => window.parent.postMessage({ flenwheel: "try", ...job }, location.origin) } : {})
  const url = new URL(location.href)
  url.searchParams.set("project", name.project)
  url.searchParams.set("job", name.id)
  history.replaceState(null, "", url)
  list.draw()
}

if (asked.get("theme")) document.documentElement.dataset.theme = asked.get("theme") ?? ""
await learn(ask)
translate(document)
const close = find("#close")
close.hidden = !embedded
close.addEventListener("click", () => window.parent.postMessage("flenwheel.close", location.origin))
addEventListener("keydown", (event) => event.key === "Escape" && embedded && !document.querySelector("dialog[open]") && window.parent.postMessage("flenwheel.close", location.origin))
addEventListener("message", ({ data, origin }) => origin === location.origin && data?.flenwheel === "job" && show({ project: data.project, id: data.id }))
const list = jobList(find("#jobs"), { open: show, chosen: () => shown?.id ?? "" })
const [project, id] = [asked.get("project"), asked.get("job")]
if (project && id) show({ project, id })
else {
  const { jobs: found } = await jobs().catch(() => ({ jobs: [] }))
  if (found.length) show({ project: found[0].project, id: found[0].id })
}
document.body.dataset.page = "jobs"
