"""ComfyUI's queue from outside: queue a graph, watch it, answer its review. Needs a running server and aiohttp, and imports no ComfyUI.

As a program it is the lap of `flen.py`: python -m comfyui_flenwheel.nodes.queue http://127.0.0.1:8188 --photos DIR
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import sys
import time
import uuid
import webbrowser
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp

from ..flywheel import identity
from ..flywheel.errors import FlywheelError, ProblemsError
from ..flywheel.project import MEDIA, load_project
from .progress import Meter

Prompt = dict[str, Any]  # a graph in ComfyUI's API format, by node id

WORKFLOW = Path(__file__).parent.parent / "workflows" / "api" / "flywheel1_first_lap.json"
PATIENCE_S = 60.0  # how long a server may be gone
POLL_S = 2.0
REPORT_LINES = 6
DECIDED_AT_ONCE = 500


class QueueError(ProblemsError):
    """ComfyUI refused the graph, a node failed, or nobody answers."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left of a graph that ran: what each node shows, by node id, and why it failed, if it did."""

    shown: Mapping[str, Mapping[str, list[Any]]]
    failure: QueueError | None = None

    def last(self, key: str) -> Any:
        """The newest thing shown under this key, such as flen_review, or None."""
        found = [shown[key][-1] for shown in self.shown.values() if shown.get(key)]
        return found[-1] if found else None


class Client:
    """One ComfyUI server. An async context manager."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.client_id = uuid.uuid4().hex

    async def __aenter__(self) -> Client:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._session.close()

    async def get(self, path: str) -> Any:
        """The JSON at this path. Raises QueueError with the server's own words when it refuses, aiohttp.ClientError when it is gone."""
        async with self._session.get(self.address + path) as answer:
            return await _told(answer)

    async def post(self, path: str, body: Any) -> Any:
        """As `get`, with a JSON body."""
        async with self._session.post(self.address + path, json=body) as answer:
            return await _told(answer)

    async def queue(self, prompt: Prompt, workflow: Mapping[str, Any] | None = None) -> str:
        """Queue a graph and return its id. `workflow`, the graph as the canvas draws it, is kept in images and for requeueing.

        Raises:
            QueueError: ComfyUI refuses the graph or a part of it, node by node with title, input and reason.
        """
        extra = {"extra_data": {"extra_pnginfo": {"workflow": workflow}}} if workflow else {}
        async with self._session.post(f"{self.address}/prompt", json={"prompt": prompt, "client_id": self.client_id, **extra}) as answer:
            told = await answer.json()
        problems = list(_refusals(prompt, told.get("node_errors") or {}))  # may be there with status 200: part of the graph was dropped
        if told.get("error") or problems:
            raise QueueError(f"ComfyUI refuses the graph: {(told.get('error') or {}).get('message', 'a part of it is wrong')}", problems)
        return told["prompt_id"]

    async def interrupt(self, prompt_id: str) -> None:
        """Stop this graph, running or waiting, and no other."""
        await self.post("/queue", {"delete": [prompt_id]})
        await self.post("/interrupt", {"prompt_id": prompt_id})

    async def outcome(self, prompt_id: str) -> Outcome | None:
        """How the graph ended; None while it waits or runs."""
        entry = (await self.get(f"/history/{prompt_id}")).get(prompt_id)
        if entry is None:
            return None
        failures = [data for event, data in entry["status"]["messages"] if event in ("execution_error", "execution_interrupted")]
        return Outcome(entry["outputs"], _failure(entry["prompt"][2], failures[-1]) if failures else None)

    async def watch(self, prompt_id: str, prompt: Prompt) -> Outcome:
        """Show the progress of every node until the graph has ended. Cancelling this stops the graph.

        Raises:
            QueueError: a node failed, or the server is gone.
        """
        with _Board(prompt) as board:
            try:
                async with aclosing(self.events(prompt_id)) as events:
                    async for event in events:
                        board.take(event["type"], event["data"])
                outcome = await self.outcome(prompt_id)
            except asyncio.CancelledError:
                await self.interrupt(prompt_id)
                raise
        if outcome is None:
            raise QueueError("ComfyUI was restarted and has forgotten this graph. Queue it again: finished images are kept.")
        if outcome.failure:
            raise outcome.failure
        return outcome

    async def events(self, prompt_id: str) -> AsyncGenerator[dict[str, Any]]:
        """What the server tells of this graph until it has ended, over as many connections as that takes.

        Where websockets do not pass there are no events, and this only waits for the end.

        Raises:
            QueueError: nobody has answered for a minute.
        """
        answered = time.monotonic()
        while True:
            try:
                async with self._session.ws_connect(f"{self.address}/ws?clientId={self.client_id}", max_msg_size=0, heartbeat=30) as socket:
                    while not await self._ended(prompt_id):
                        answered = time.monotonic()
                        async for event in _messages(socket):
                            if event["data"].get("prompt_id") == prompt_id:
                                yield event
                return
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                if isinstance(error, aiohttp.WSServerHandshakeError):  # it answers, only not with a websocket
                    if await self._ended(prompt_id):
                        return
                elif time.monotonic() - answered > PATIENCE_S:
                    raise QueueError(
                        f"ComfyUI at {self.address} has not answered for a minute ({error}). Start it and queue again."
                    ) from error
                await asyncio.sleep(POLL_S / 4)

    async def _ended(self, prompt_id: str) -> bool:
        """Whether the graph has ended, or the server does not know it (any more)."""
        queue = await self.get("/queue")
        waiting = {entry[1] for entry in (*queue["queue_running"], *queue["queue_pending"])}
        return prompt_id not in waiting


async def _told(answer: aiohttp.ClientResponse) -> Any:
    text = await answer.text()
    try:
        told = json.loads(text) if text else None
    except ValueError:
        told = None
    if answer.status >= 400:
        reason = told.get("error", text) if isinstance(told, dict) else text
        raise QueueError(f"ComfyUI answered {answer.status} to {answer.url.path}: {reason or answer.reason}")
    return told


async def _messages(socket: aiohttp.ClientWebSocketResponse[Any]) -> AsyncGenerator[dict[str, Any]]:
    """JSON messages until the server has been silent for a while, or says that a graph has ended. Previews are dropped.

    Raises:
        aiohttp.ClientConnectionError: the connection is gone.
    """
    while True:
        try:
            message = await socket.receive(timeout=POLL_S)
        except asyncio.TimeoutError:
            return
        if message.type is aiohttp.WSMsgType.TEXT:
            event = json.loads(message.data)
            if isinstance(event.get("data"), dict):
                yield event
                if event["type"] == "executing" and event["data"].get("node") is None:  # comes when the history has the outcome
                    return
        elif message.type is not aiohttp.WSMsgType.BINARY:
            raise aiohttp.ClientConnectionError("the connection was closed")


def title(prompt: Prompt, node_id: str) -> str:
    """What the node is called on the canvas; its class where nobody named it."""
    node = prompt.get(node_id, {})
    return node.get("_meta", {}).get("title") or node.get("class_type") or f"node {node_id}"


def _refusals(prompt: Prompt, node_errors: Mapping[str, Any]) -> Iterator[str]:
    for node_id, found in node_errors.items():
        for error in found["errors"]:
            name = (error.get("extra_info") or {}).get("input_name")
            where = f"{title(prompt, node_id)} ({node_id}){f', input {name}' if name else ''}"
            details = f" ({error['details']})" if error.get("details") else ""
            yield f"{where}: {error['message']}{details}"


def _failure(prompt: Prompt, data: Mapping[str, Any]) -> QueueError:
    name = title(prompt, str(data.get("node_id")))
    if "exception_message" not in data:
        return QueueError(f"Stopped at {name}. What is finished is kept; queue again to go on.")
    return QueueError(f"{name} failed: {data['exception_message'].strip()}")


def with_overrides(prompt: Prompt, values: Mapping[str, Any]) -> Prompt:
    """A copy of the graph with these inputs changed, such as {"Project.name": "Ada", "8.limit": 10}.

    A node is named by its title, its id or its class; a list is passed the way ComfyUI wants it.

    Raises:
        QueueError: a name fits no node, several nodes, or no input of the node; says what there is.
    """
    changed = copy.deepcopy(prompt)
    problems: list[str] = []
    for key, value in values.items():
        nodes, name = _named(changed, key)
        titles = ", ".join(sorted({title(prompt, node_id) for node_id in prompt}))
        if not nodes:
            problems.append(f"{key!r} names no node of the graph. Its nodes are: {titles}")
        elif len(nodes) > 1:
            problems.append(f"{key!r} fits {len(nodes)} nodes: use the id instead, one of {', '.join(nodes)}")
        elif name not in changed[nodes[0]]["inputs"]:
            problems.append(f"{key!r}: {title(prompt, nodes[0])} has no input {name!r}. It has: {', '.join(changed[nodes[0]]['inputs'])}")
        else:
            changed[nodes[0]]["inputs"][name] = {"__value__": value} if isinstance(value, list) else value
    if problems:
        raise QueueError("These inputs cannot be set:", problems)
    return changed


def _named(prompt: Prompt, key: str) -> tuple[list[str], str]:
    """The ids that the part before a dot names, and the rest. Titles and inputs may have dots themselves: the longest name wins."""
    for at in reversed([at for at, letter in enumerate(key) if letter == "."]):
        name, rest = key[:at], key[at + 1 :]
        exact = [node_id for node_id in prompt if name in (node_id, prompt[node_id].get("_meta", {}).get("title"))]
        if nodes := exact or [node_id for node_id in prompt if prompt[node_id]["class_type"] == name]:
            return nodes, rest
    return [], key


class _Board:
    """The lines on the screen while a graph runs: one per node, then what the node has to say."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt
        self.cached: set[str] = set()
        self.waiting: set[str] = set()  # behind a review that is not decided: ComfyUI passes over them as if they ran
        self.running: str | None = None
        self._meter: Meter | None = None
        self._open = ExitStack()

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.__exit__(kind, error, trace)

    def take(self, kind: str, data: Mapping[str, Any]) -> None:
        """One message of the server."""
        if kind == "execution_cached":
            self.cached.update(data["nodes"])
        elif kind == "executing" and data["node"] != self.running:
            self._turn_to(data["node"])
        elif kind == "progress_state" and self._meter and self.running in data["nodes"]:
            state = data["nodes"][self.running]
            if state["max"] > 1:
                self._meter.show(state["value"], state["max"])
        elif kind == "executed" and data["node"] not in self.cached:
            self._turn_to(None)
            shown = data.get("output") or {}
            for text in shown.get("text", ()):
                say(_indented(text))
            if any(review["counts"]["undecided"] for review in shown.get("flen_review", ())):
                self.waiting |= _behind(self.prompt, data["node"])
        elif kind == "execution_error":
            self._open.__exit__(QueueError, None, None)
        elif kind == "execution_success":
            self._turn_to(None)
            for words, nodes in (("Unchanged since the last run", self.cached), ("Waiting for the review", self.waiting)):
                if nodes:
                    say(f"{words}: {', '.join(title(self.prompt, node_id) for node_id in self.prompt if node_id in nodes)}")

    def _turn_to(self, node_id: str | None) -> None:
        self._open.close()
        self.running, self._meter = node_id, None
        if node_id is not None and node_id not in self.waiting:
            self._meter = self._open.enter_context(Meter(title(self.prompt, node_id), sys.stdout))


def _behind(prompt: Prompt, node_id: str) -> set[str]:
    """The ids of all nodes that need this one."""
    needs = {user: {value[0] for value in node["inputs"].values() if isinstance(value, list) and value} for user, node in prompt.items()}
    behind: set[str] = set()
    found = {node_id}
    while found:
        found = {user for user in prompt if needs[user] & found} - behind
        behind |= found
    return behind


def _indented(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    more = [f"… and {len(lines) - REPORT_LINES} more lines, on the node"] if len(lines) > REPORT_LINES else []
    return "\n".join(f"    {line}" for line in [*lines[:REPORT_LINES], *more])


def say(text: str) -> None:
    """For the person at the terminal; a log would add a date to every line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


POLICY = (
    f"Auto-review: a similarity of {identity.MATCH:.2f} or more is good, below {identity.THRESHOLD:.2f} is rejected (identity),"
    " what lies between or cannot be measured needs correction."
)


def verdict(similarity: float | None, state: str | None) -> dict[str, Any]:
    """What the stated policy says of an image with this score."""
    if similarity is None:
        return {"label": "needs_correction", "reasons": ["other"], "note": f"no similarity: {(state or 'not scored').replace('_', ' ')}"}
    if similarity >= identity.MATCH:
        return {"label": "good", "reasons": [], "note": f"similarity {similarity:.2f}"}
    label = "needs_correction" if similarity >= identity.THRESHOLD else "reject"
    return {"label": label, "reasons": ["identity"], "note": f"similarity {similarity:.2f}"}


async def answer_by_policy(client: Client, review: Mapping[str, Any]) -> None:
    """Decide what nobody has decided, by POLICY and through the same route as a person. Verdicts that exist are left alone."""
    say(POLICY)
    where = _route(review)
    undecided = [item for item in (await client.get(where))["items"] if item["label"] is None]
    events = [{"key": item["key"], **verdict(item["similarity"], item["state"])} for item in undecided]
    with Meter("Auto-review", sys.stdout) as meter:
        for at in range(0, len(events), DECIDED_AT_ONCE):
            part = events[at : at + DECIDED_AT_ONCE]
            await client.post(f"{where}/labels", {"reviewer": "auto-review", "origin": "policy", "events": part})
            meter.show(at + len(part), len(events))


async def wait_for_person(client: Client, review: Mapping[str, Any]) -> None:
    """Until every image of the review has a verdict."""
    say(
        f"\nDecide here: {review['address']}\nThis goes on by itself when all images are decided. Ctrl+C ends it for now; nothing is lost.\n"
    )
    counts = review["counts"]
    answered = time.monotonic()
    with Meter("Review", sys.stdout) as meter:
        while counts["undecided"]:
            meter.show(counts["total"] - counts["undecided"], counts["total"])
            await asyncio.sleep(POLL_S)
            try:
                counts = (await client.get(_route(review)))["counts"]
                answered = time.monotonic()
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                if time.monotonic() - answered > PATIENCE_S:
                    raise QueueError(f"ComfyUI at {client.address} is gone ({error}). Your verdicts are kept; start again.") from error
        meter.show(counts["total"], counts["total"])


def _route(review: Mapping[str, Any]) -> str:
    return "/flenwheel/review/" + "/".join(quote(review[part], safe="") for part in ("project", "stage", "version"))


async def lap(client: Client, prompt: Prompt, *, auto_review: bool, browser: bool = False) -> Outcome:
    """Run the graph, have its review answered, and run it again, until nothing is undecided.

    Raises:
        QueueError: it does not come to an end.
    """
    while True:
        outcome = await client.watch(await client.queue(prompt), prompt)
        review = outcome.last("flen_review")
        if not review or not review["counts"]["undecided"]:
            return outcome
        if auto_review:
            await answer_by_policy(client, review)
        else:
            if browser:
                webbrowser.open(review["address"])
            await wait_for_person(client, review)


def summary(outcome: Outcome, output: Path) -> str:
    """What was made and where, as the files in ComfyUI's folder `output` have it.

    Raises:
        QueueError: no training set was written, or a file of it is missing.
    """
    review = outcome.last("flen_review")
    if not review:
        raise QueueError("The graph ended without a review. Read the reports above.")
    folder = load_project(output / "flenwheel" / review["project"], int(review["version"][1:])).stage("training").folder
    listing = folder / "metadata.jsonl"
    images = (
        [folder / json.loads(row)["file_name"] for row in listing.read_text(encoding="utf-8").splitlines()] if listing.is_file() else []
    )
    missing = [str(file) for image in images for file in (image, image.with_suffix(".txt")) if not file.is_file()]
    if not images or missing:
        raise QueueError(f"There is no whole training set in {folder}. Read the reports above.", missing)
    counts = review["counts"]
    decided = f"{counts['good']} good, {counts['needs_correction']} need correction, {counts['reject']} rejected"
    return f"\nReview        {decided}\nTraining set  {len(images)} images with captions in {folder}\nReport        {folder / 'report.txt'}"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Photographs in, reviewed training set out.")
    parser.add_argument("address", help="of the running ComfyUI, such as http://127.0.0.1:8188")
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="ComfyUI's output folder")
    parser.add_argument("--auto-review", action="store_true")
    parser.add_argument("--open", action="store_true")
    parser.add_argument("--name")
    parser.add_argument("--token")
    parser.add_argument("--class-noun")
    parser.add_argument("--pictures", choices=MEDIA)
    return parser.parse_args(arguments)


async def _lap(args: argparse.Namespace) -> None:
    wanted = {
        "Curate Source.folder": str(args.photos.resolve()),
        "Project.name": args.name or args.photos.resolve().name,  # another person's photos never end up in this one's project
        "Project.instance_token": args.token,
        "Project.class_noun": args.class_noun,
        "Project.pictures_are": args.pictures,
    }
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    prompt = with_overrides(graph, {key: value for key, value in wanted.items() if value})
    async with Client(args.address) as client:
        outcome = await lap(client, prompt, auto_review=args.auto_review, browser=args.open)
    say(summary(outcome, args.output))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 failed with the reason on stderr, 2 wrong usage, 130 interrupted."""
    try:
        asyncio.run(_lap(_arguments(arguments)))
    except FlywheelError as error:
        sys.stderr.write(f"\n{error}\n")
        return 1
    except aiohttp.ClientError as error:
        sys.stderr.write(f"\nComfyUI does not answer: {error}. Run the same command again; what is finished is kept.\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. Every finished image and every verdict is kept; the same command goes on from there.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
