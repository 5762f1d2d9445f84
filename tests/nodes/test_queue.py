"""The queue's client: what is refused is said node by node, and no lost connection loses a graph."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from comfyui_flenwheel.nodes import launch, queue
from comfyui_flenwheel.nodes.launch import Server
from comfyui_flenwheel.nodes.queue import Client, QueueError, with_overrides

GRAPH = {
    "1": {"class_type": "FLEN_Project", "_meta": {"title": "Project"}, "inputs": {"name": "x", "version": 1}},
    "2": {
        "class_type": "FLEN_CurateSource",
        "_meta": {"title": "Curate v1.0"},
        "inputs": {"project": ["1", 0], "mode.width": 1, "tags": []},
    },
    "3": {"class_type": "Score", "_meta": {"title": "Score"}, "inputs": {"dataset": ["2", 0]}},
    "4": {"class_type": "Score", "_meta": {"title": "Score"}, "inputs": {"dataset": ["2", 0]}},
    "5": {"class_type": "Editor", "inputs": {"rate": 0.1}},
}

# Overrides


@pytest.mark.parametrize(
    ("key", "node", "name"),
    [
        ("Project.name", "1", "name"),
        ("1.name", "1", "name"),
        ("FLEN_Project.name", "1", "name"),
        ("Editor.rate", "5", "rate"),
        ("Curate v1.0.mode.width", "2", "mode.width"),
    ],
)
def test_an_input_is_named_by_title_id_or_class(key, node, name):
    changed = with_overrides(GRAPH, {key: "new"})
    assert changed[node]["inputs"][name] == "new" and GRAPH[node]["inputs"][name] != "new"
    assert {other: changed[other] for other in changed if other != node} == {other: GRAPH[other] for other in GRAPH if other != node}


def test_a_list_is_wrapped_so_that_it_is_not_taken_for_a_link():
    assert with_overrides(GRAPH, {"2.tags": ["a", "b"]})["2"]["inputs"]["tags"] == {"__value__": ["a", "b"]}


def test_everything_that_cannot_be_set_is_told_at_once_with_what_there_is():
    with pytest.raises(QueueError) as told:
        with_overrides(GRAPH, {"Projekt.name": "x", "Project.nam": "x", "Score.dataset": "x", "name": "x"})
    lines = str(told.value).splitlines()
    assert len(told.value.problems) == 4
    assert "'Projekt.name' names no node" in lines[1] and "Curate v1.0, Editor, Project, Score" in lines[1]
    assert "Project has no input 'nam'. It has: name, version" in lines[2]
    assert "fits 2 nodes: use the id instead, one of 3, 4" in lines[3]


def test_the_bundled_graph_has_the_inputs_that_the_lap_sets():
    graph = json.loads(queue.WORKFLOW.read_text(encoding="utf-8"))
    names = ("Project.name", "Project.instance_token", "Project.class_noun", "Project.pictures_are", "Curate Source.folder")
    with_overrides(graph, dict.fromkeys(names, "x"))


# The policy


@pytest.mark.parametrize(
    ("similarity", "state", "label", "reasons"),
    [
        (0.64, "measured", "good", []),
        (0.639, "measured", "needs_correction", ["identity"]),
        (0.60, "measured", "needs_correction", ["identity"]),
        (0.599, "measured", "reject", ["identity"]),
        (None, "no_face", "needs_correction", ["other"]),
        (None, None, "needs_correction", ["other"]),
    ],
)
def test_the_policy_answers_as_stated(similarity, state, label, reasons):
    verdict = queue.verdict(similarity, state)
    assert (verdict["label"], verdict["reasons"]) == (label, reasons) and verdict["note"]
    assert "0.64" in queue.POLICY and "0.60" in queue.POLICY


# The lines on the screen


def test_the_screen_says_what_ran_what_was_unchanged_and_what_waits(capsys):
    pending = {"text": ["2 of 2 wait\nsecond line"], "flen_review": [{"counts": {"undecided": 2}}]}
    with queue._Board(GRAPH) as board:
        board.take("execution_cached", {"nodes": ["1"]})
        board.take("executed", {"node": "1", "output": {"text": ["old news"]}})
        board.take("executing", {"node": "2"})
        board.take("progress_state", {"nodes": {"2": {"value": 7, "max": 9}}})
        board.take("executed", {"node": "2", "output": pending})
        board.take("executing", {"node": "3"})
        board.take("execution_success", {})
    out = capsys.readouterr().out
    assert "Curate v1.0" in out and " 7/9 " in out and "    2 of 2 wait\n    second line\n" in out
    assert "old news" not in out and "Unchanged since the last run: Project\n" in out
    assert "Waiting for the review: Score, Score\n" in out and out.count("Score") == 2


def test_a_failed_node_is_marked(capsys):
    with queue._Board(GRAPH) as board:
        board.take("executing", {"node": "2"})
        board.take("execution_error", {"node_id": "2"})
    assert capsys.readouterr().out.endswith("failed\n")


def test_a_training_set_is_only_claimed_when_it_is_on_disk(tmp_path):
    project = tmp_path / "flenwheel" / "ada"
    training = project / "data" / "training" / "v1"
    training.mkdir(parents=True)
    (project / "project.json").write_text('{"schema": 1, "name": "ada", "instance_token": "qxada", "class_noun": "woman"}')
    counts = {"total": 2, "undecided": 0, "good": 1, "needs_correction": 0, "reject": 1}
    outcome = queue.Outcome({"12": {"flen_review": [{"project": "ada", "version": "v1", "counts": counts}]}})
    with pytest.raises(QueueError, match="no whole training set"):
        queue.summary(outcome, tmp_path)
    (training / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    (training / "a.png").touch()
    with pytest.raises(QueueError, match=r"a\.txt"):
        queue.summary(outcome, tmp_path)
    (training / "a.txt").touch()
    assert f"1 images with captions in {training}" in queue.summary(outcome, tmp_path)
    with pytest.raises(QueueError, match="without a review"):
        queue.summary(queue.Outcome({}), tmp_path)


def apart(work, *arguments):
    """On a thread of its own: on this one the browser of another test may keep an event loop running."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work, *arguments).result()


def test_nobody_there_is_said_without_a_traceback(capsys, tmp_path):
    assert apart(queue.main, ["http://127.0.0.1:9", "--photos", str(tmp_path), "--output", str(tmp_path)]) == 1
    assert "does not answer" in capsys.readouterr().err


# The real server


def enriching(name: str, photos: Path, seconds_per_image: float) -> dict[str, dict]:
    """The first lap up to the enriched images, without measuring faces, at a chosen pace."""
    graph = json.loads(queue.WORKFLOW.read_text(encoding="utf-8"))
    graph = {node_id: graph[node_id] for node_id in ("1", "2", "6", "7", "8")}
    graph["6"]["inputs"] |= {"dataset": ["2", 0], "per_source": 3}
    graph["8"]["inputs"] |= {"dataset": ["2", 0], "megapixels": 0.1}
    del graph["8"]["inputs"]["references"]
    values = {"Project.name": name, "Project.pictures_are": "photographs", "Curate Source.folder": str(photos)}
    values["Rehearsal Editor.seconds_per_image"] = seconds_per_image
    return with_overrides(graph, values)


def finished(server: Server, name: str) -> int:
    return len(list((server.base / "output" / "flenwheel" / name / "data" / "enriched" / "v1").glob("*.png")))


@pytest.mark.comfy
def test_a_refused_graph_is_told_node_by_node(server):
    graph = {
        "1": {"class_type": "EmptyImage", "_meta": {"title": "Canvas"}, "inputs": {"width": 0, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "PreviewImage", "_meta": {"title": "See"}, "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "PreviewImage", "_meta": {"title": "See too"}, "inputs": {}},
    }

    async def refused() -> QueueError:
        async with Client(server.address) as client:
            with pytest.raises(QueueError) as told:
                await client.queue(graph)
            return told.value

    problems = apart(asyncio.run, refused()).problems
    assert any("Canvas (1), input width" in problem for problem in problems)
    assert any("See too (3), input images" in problem for problem in problems)


@pytest.mark.comfy
def test_a_graph_of_which_only_a_part_is_wrong_is_refused_too(server):
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "PreviewImage", "_meta": {"title": "Loose"}, "inputs": {}},
    }

    async def queue_it() -> None:
        async with Client(server.address) as client:
            await client.queue(graph)

    with pytest.raises(QueueError, match="Loose"):
        apart(asyncio.run, queue_it())


@pytest.mark.comfy
def test_a_node_that_fails_is_named_with_its_own_words(server, tmp_path, capsys):
    graph = enriching("fails", tmp_path / "nowhere", 0)

    async def watched() -> None:
        async with Client(server.address) as client:
            await client.watch(await client.queue(graph), graph)

    with pytest.raises(QueueError, match="Curate Source failed: There is no folder"):
        apart(asyncio.run, watched())
    assert "failed" in capsys.readouterr().out


class Relay:
    """A wire to the server that can be cut: every connection over it ends, and new ones are refused while it is down."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.writers: set[asyncio.StreamWriter] = set()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers |= {writer, back}

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while block := await source.read(1 << 16):
                    sink.write(block)
                    await sink.drain()
            sink.close()

        await asyncio.gather(carry(reader, back), carry(there, writer))

    @contextlib.asynccontextmanager
    async def open(self, port: int = 0) -> AsyncIterator[str]:
        self.server = await asyncio.start_server(self._join, "127.0.0.1", port)
        own = self.server.sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{own}"
        finally:
            self.cut()

    def cut(self) -> None:
        self.server.close()
        for writer in self.writers:
            writer.close()
        self.writers.clear()


@pytest.mark.comfy
@pytest.mark.faces
def test_a_lost_connection_is_taken_up_again(server, photos, capsys):
    graph = enriching("reconnect", photos, 0.25)

    async def watched() -> queue.Outcome:
        relay = Relay(server.port)
        async with contextlib.AsyncExitStack() as stack:
            address = await stack.enter_async_context(relay.open())
            client = await stack.enter_async_context(Client(address))
            watching = asyncio.create_task(client.watch(await client.queue(graph), graph))
            while finished(server, "reconnect") < 2:
                await asyncio.sleep(0.05)
            relay.cut()
            await asyncio.sleep(1.5)
            await stack.enter_async_context(relay.open(int(address.rsplit(":", 1)[1])))
            return await watching

    assert apart(asyncio.run, watched()).failure is None
    assert f"{finished(server, 'reconnect')} candidates in" in capsys.readouterr().out, "events came over the new connection"


@pytest.mark.comfy
@pytest.mark.faces
def test_cancelling_the_watch_stops_the_graph_and_keeps_what_is_finished(server, photos):
    graph = enriching("cancel", photos, 0.5)

    async def cancelled() -> queue.Outcome | None:
        async with Client(server.address) as client:
            prompt_id = await client.queue(graph)
            watching = asyncio.create_task(client.watch(prompt_id, graph))
            while finished(server, "cancel") < 2:
                await asyncio.sleep(0.05)
            watching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await watching
            while (outcome := await client.outcome(prompt_id)) is None:
                await asyncio.sleep(0.05)
            return outcome

    outcome = apart(asyncio.run, cancelled())
    assert outcome and "Stopped at Enrich Dataset" in str(outcome.failure)
    assert 2 <= finished(server, "cancel") < 15


@pytest.mark.comfy
@pytest.mark.faces
@pytest.mark.slow
def test_a_server_that_was_killed_and_started_again_has_forgotten_the_graph_but_not_the_images(comfyui, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "PATIENCE_S", 300.0)  # however slowly a busy machine starts it
    graph = enriching("killed", photos, 0.5)
    with Server(comfyui, Path(sys.executable), tmp_path / "base") as server:
        port = server.port

        async def watched() -> int:
            async with Client(server.address) as client:
                watching = asyncio.create_task(client.watch(await client.queue(graph), graph))
                while finished(server, "killed") < 2:
                    await asyncio.sleep(0.05)
                server.kill()
                kept = finished(server, "killed")
                assert launch.running(server.base) is None
                await asyncio.to_thread(server.start)
                with pytest.raises(QueueError, match="has forgotten this graph"):
                    await watching
                return kept

        kept = apart(asyncio.run, watched())
        assert server.port == port and launch.running(server.base) == server.address
        assert finished(server, "killed") >= kept >= 2
