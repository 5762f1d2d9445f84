"""fal.ai and Replicate against a server on this machine that speaks their documented protocols, well and badly. No network."""

import asyncio
import dataclasses
import io
import json
import tarfile
import threading
import zipfile

import numpy as np
import psutil
import pytest
from aiohttp import web
from comfyui_flenwheel.flywheel import lora as lora_files
from comfyui_flenwheel.flywheel.images import png_bytes, write_whole
from comfyui_flenwheel.training import engines, preflight, run
from comfyui_flenwheel.training import job as jobs
from comfyui_flenwheel.training.engines import _remote, replicate
from comfyui_flenwheel.training.errors import PreflightError, Stopped, TrainingFailed
from comfyui_flenwheel.training.job import Places
from PIL import Image
from safetensors.numpy import save

from .conftest import edit_job, pairs, spec_for, until

BAR = "flux_train_replicate:  {percent}%|###  | {step}/20 [00:10<00:10,  2.40s/it, lr: 4.0e-04 loss: {loss:.3e}]"
FAMILIES = {"fal": "transformer.transformer_blocks.0.attn.to_q", "replicate": "transformer.transformer_blocks.0.attn.to_q"}


def lora(prefix="transformer."):
    name = f"{prefix}transformer_blocks.0.attn.to_q"
    return save(
        {f"{name}.lora_A.weight": np.full((4, 3072), 0.5, np.float16), f"{name}.lora_B.weight": np.full((3072, 4), 0.5, np.float16)},
        {"format": "pt", "config": "/src/output/flux_train_replicate"},
    )


class Cloud:
    """The server: counts what it gets, and is bad in the way `mood` says."""

    def __init__(self):
        self.mood = ""
        self.submits, self.polls, self.cancels, self.archives, self.keys = [], 0, 0, [], set()
        self.trouble = 0
        self.until_done = 3

    def app(self):
        app = web.Application(client_max_size=1 << 26, middlewares=[self.watch])
        app.add_routes(
            [
                web.post("/storage/upload/initiate", self.initiate),
                web.put("/signed/{name}", self.stored),
                web.post("/fal-ai/{trainer}", self.submitted),
                web.get("/requests/r1/status", self.fal_status),
                web.get("/requests/r1", self.fal_result),
                web.put("/requests/r1/cancel", self.cancelled),
                web.get("/files/lora.safetensors", self.file),
                web.post("/v1/files", self.replicate_file),
                web.get("/v1/models/ostris/flux-dev-lora-trainer", self.version),
                web.post("/v1/models/ostris/flux-dev-lora-trainer/versions/v9/trainings", self.submitted),
                web.get("/v1/trainings/r1", self.replicate_status),
                web.post("/v1/trainings/r1/cancel", self.cancelled),
                web.get("/files/weights.tar", self.archive),
            ]
        )
        return app

    @web.middleware
    async def watch(self, request, handler):
        self.keys.add(request.headers.get("Authorization", ""))
        signed = request.path.startswith("/signed")
        if not signed and request.headers.get("Authorization") not in ("Key fal-secret", "Bearer r8-secret"):
            return web.json_response({"detail": "Invalid token."}, status=401)
        assert not (signed and "Authorization" in request.headers), "the key went to a signed address"
        return await handler(request)

    def url(self, path):
        return f"{self.base}{path}"

    async def initiate(self, request):
        assert (await request.json())["content_type"] == "application/zip"
        return web.json_response({"upload_url": self.url("/signed/a.zip"), "file_url": "https://v3.fal.media/a.zip"})

    async def stored(self, request):
        self.archives.append(await request.read())
        return web.Response()

    async def replicate_file(self, request):
        part = await (await request.multipart()).next()
        self.archives.append(bytes(await part.read()))
        return web.json_response({"id": "f1", "urls": {"get": "https://api.replicate.com/v1/files/f1"}})

    async def version(self, _):
        return web.json_response({"latest_version": {"id": "v9"}})

    async def submitted(self, request):
        self.submits.append((request.path, await request.json()))
        if self.mood == "refused":
            return web.json_response({"detail": [{"loc": ["body", "steps"], "msg": "too many"}]}, status=422)
        if self.mood == "broken line":
            request.transport.abort()
        if self.mood == "no credit":
            return web.json_response({"detail": "Insufficient credit"}, status=402)
        host = "http://127.0.0.1:1" if self.mood == "other host" else self.base
        urls = {
            name: f"{host}/requests/r1{end}" for name, end in (("status_url", "/status"), ("response_url", ""), ("cancel_url", "/cancel"))
        }
        return web.json_response({"id": "r1", "request_id": "r1", "status": "starting", **urls})

    def troubled(self):
        if self.mood == "trouble" and self.trouble < 3:
            self.trouble += 1
            if self.trouble == 1:
                return web.json_response({"detail": "Request was throttled. Your rate limit resets in ~1s."}, status=429)
            return web.Response(text="<html>bad gateway</html>", status=502)
        if self.mood == "html":
            return web.Response(text="<html>maintenance</html>")
        if self.mood == "expired":
            return web.json_response({"detail": "Not found"}, status=404)
        return None

    def bars(self):
        return "\n".join(BAR.format(percent=5 * step, step=step, loss=1 / step) for step in range(1, min(20, 7 * self.polls) + 1))

    async def fal_status(self, request):
        assert request.query["logs"] == "1"
        if (answer := self.troubled()) is not None:
            return answer
        self.polls += 1
        if self.polls == 1:
            return web.json_response({"status": "IN_QUEUE", "queue_position": 2}, status=202)
        logs = [{"message": line} for line in self.bars().splitlines()]
        if self.mood == "for ever" or self.polls < self.until_done:
            return web.json_response({"status": "IN_PROGRESS", "logs": logs}, status=202)
        if self.mood == "failed":
            return web.json_response({"status": "COMPLETED", "error": "CUDA out of memory", "error_type": "runner_server_error"})
        return web.json_response({"status": "COMPLETED", "logs": logs})

    async def fal_result(self, _):
        if self.mood == "empty":
            return web.json_response({"images": []})
        return web.json_response({"diffusers_lora_file": {"url": self.url("/files/lora.safetensors")}, "config_file": {}})

    async def replicate_status(self, _):
        if (answer := self.troubled()) is not None:
            return answer
        self.polls += 1
        states = {"failed": "failed", "for ever": "processing", "aborted": "aborted"}
        state = "starting" if self.polls == 1 else "processing" if self.polls < self.until_done else states.get(self.mood, "succeeded")
        output = {"version": "me/anna:1", "weights": self.url("/files/weights.tar")} if self.mood != "empty" else None
        error = "CUDA out of memory" if state == "failed" else None
        return web.json_response({"id": "r1", "status": state, "logs": self.bars(), "output": output, "error": error})

    async def cancelled(self, _):
        self.cancels += 1
        return web.json_response({"status": "ok"})

    async def file(self, _):
        return web.Response(body=b"<html>expired</html>" if self.mood == "garbage" else lora())

    async def archive(self, _):
        buffer, content = io.BytesIO(), b"<html>" if self.mood == "garbage" else lora()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in (
                ("../../evil.txt", b"x"),
                ("output/flux_train_replicate/lora.safetensors", content),
                ("captions/a.txt", b"a"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return web.Response(body=buffer.getvalue())


@pytest.fixture
def cloud(monkeypatch):
    cloud, started, loop = Cloud(), threading.Event(), asyncio.new_event_loop()

    async def serve():
        runner = web.AppRunner(cloud.app())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        cloud.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        return runner

    def work():
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(serve())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(10)
    for name in ("FAL_QUEUE_URL", "FAL_REST_URL", "REPLICATE_BASE_URL"):
        monkeypatch.setenv(name, cloud.base)
    monkeypatch.setenv("FAL_KEY", "fal-secret")
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8-secret")
    monkeypatch.setattr(_remote, "POLL_S", 0.02)
    monkeypatch.setattr(_remote, "FIRST_PAUSE_S", 0.01)
    yield cloud
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


AGREED = {"upload": True, "max_price_usd": 1.0}


@pytest.fixture(params=["fal", "replicate"])
def job(request, project, spec, tmp_path):
    if request.param == "fal":
        return edit_job(project, "fal", tmp_path, tmp_path / "loras", options=AGREED)
    options = {**AGREED, "destination": "me/anna"}
    spec = dataclasses.replace(spec, engine="replicate", steps=20, options=options, learning_rate=4e-4)
    return jobs.find_or_create(project.root, spec, Places(loras=tmp_path / "loras"))


def trained(job):
    return engines.engine(job.spec.engine).train(job)


def test_it_is_sent_once_watched_fetched_and_proved(cloud, job):
    preflight.check(job)
    assert run.work(job) == 0, job.status()
    assert job.status().state == "done" and run.result_of(job).path.name.startswith("Anna-")
    assert len(cloud.submits) == 1 and len(cloud.archives) == 1
    names = sorted(zipfile.ZipFile(io.BytesIO(cloud.archives[0])).namelist())
    path, body = cloud.submits[0]
    if job.spec.engine == "fal":
        assert names[:3] == ["p0001.txt", "p0001_end.png", "p0001_start.png"] and len(names) == 12
        assert path.endswith("qwen-image-edit-2509-trainer") and body == {
            "image_data_url": "https://v3.fal.media/a.zip",
            "steps": 20,
            "learning_rate": 1e-4,
        }
    else:
        assert names[:2] == ["p0001.png", "p0001.txt"] and len(names) == 24
        assert body["destination"] == "me/anna" and body["input"]["autocaption"] is False and "hf_token" not in body["input"]
    assert [step for step, _ in job.losses()] == list(range(1, 21))
    told = lora_files.inspect(run.result_of(job).path).metadata["flenwheel.versions"]
    trainers = {"fal": "fal.ai fal-ai/qwen-image-edit-2509-trainer", "replicate": "Replicate ostris/flux-dev-lora-trainer:v9"}
    assert told == trainers[job.spec.engine]
    written = "".join(path.read_text(errors="replace") for path in job.folder.rglob("*") if path.suffix in (".json", ".jsonl", ".txt"))
    assert "secret" not in written, "the key is nowhere"
    assert not list(job.folder.rglob("evil.txt"))


def test_no_prompt_or_workflow_in_a_picture_is_sent(cloud, project, tmp_path):
    folder = pairs(project, count=2)
    told = {"workflow": "what nobody else should read"}
    for path in project.root.rglob("*_0*.png"):
        write_whole(path, png_bytes(Image.open(path).convert("RGB"), told))
    spec = spec_for(project, folder, "fal", options=AGREED)
    trained(jobs.find_or_create(project.root, spec))
    archive = zipfile.ZipFile(io.BytesIO(cloud.archives[0]))
    assert len(archive.namelist()) == 6 and not any(b"nobody else" in archive.read(name) for name in archive.namelist())


def test_nothing_is_sent_before_price_and_upload_are_agreed_to(cloud, project, spec, monkeypatch, tmp_path):
    monkeypatch.delenv("FAL_KEY")
    job = edit_job(project, "fal", tmp_path, tmp_path, steps=1000)
    with pytest.raises(PreflightError) as caught:
        preflight.check(job)
    told = "\n".join(caught.value.problems)
    for words in (
        "FAL_KEY is not set",
        "8 pictures of 'Anna' with their captions",
        "set upload = true",
        "about 4.00 USD",
        "you allow 0.00",
    ):
        assert words in told
    bare = dataclasses.replace(spec, engine="replicate", steps=7000, options={})
    with pytest.raises(PreflightError, match=r"(?s)destination is ''.*6000 at most") as caught:
        preflight.check(jobs.find_or_create(project.root, bare))
    assert "about 14.00 USD" in str(caught.value) and cloud.submits == [] and cloud.archives == []
    few = edit_job(project, "fal", tmp_path, tmp_path, options=AGREED)
    monkeypatch.setenv("FAL_KEY", "fal-secret")
    assert any("about 0.40 USD" in fact for fact in preflight.check(few).facts), "100 steps are the least that is charged"


def test_a_worker_that_dies_while_it_waits_is_replaced_by_one_that_asks_again(cloud, job):
    cloud.until_done = 10**6
    run.start(job)
    until(lambda: cloud.polls >= 1)
    psutil.Process(next(event["pid"] for event in reversed(job.events()) if event["kind"] == "started")).kill()
    until(lambda: job.status().state == "lost")
    assert cloud.cancels == 0, "it goes on there"
    cloud.until_done = 3
    run.start(job)
    assert run.wait(job, 40).state == "done", job.status()
    assert len(cloud.submits) == 1 and len(cloud.archives) == 1
    assert any("goes on waiting for training r1" in event.get("text", "") for event in job.events())


def test_stop_cancels_it_there_so_that_it_costs_no_more(cloud, job):
    cloud.mood = "for ever"
    job.ask_to_stop()
    with pytest.raises(Stopped):
        trained(job)
    assert cloud.submits == [], "stopped before anything was begun"
    job.forget_stop()
    thread = threading.Thread(target=lambda: run.work(job))
    thread.start()
    until(lambda: cloud.polls >= 2)
    job.ask_to_stop()
    thread.join(20)
    assert job.status().state == "stopped" and cloud.cancels == 1
    assert any("costs, anew" in event.get("text", "") for event in job.events())


@pytest.mark.parametrize(
    ("mood", "told"),
    [
        ("refused", "body.steps: too many"),
        ("no credit", "no credit left"),
        ("failed", "CUDA out of memory"),
        ("empty", "answer has no"),
        ("html", "no JSON"),
        ("expired", "does not know this training any more"),
    ],
)
def test_bad_answers_are_told_in_words(cloud, job, mood, told):
    cloud.mood = mood
    with pytest.raises(TrainingFailed, match=told) as caught:
        trained(job)
    assert caught.value.advice and "secret" not in str(caught.value)
    assert len(cloud.submits) == 1


def test_garbage_instead_of_a_lora_is_never_registered(cloud, job, tmp_path):
    cloud.mood = "garbage"
    assert run.work(job) == 1
    assert "is no LoRA" in job.status().cause and not list((tmp_path / "loras").rglob("*.safetensors"))


def test_a_busy_service_is_asked_again_and_nothing_is_sent_twice(cloud, job):
    cloud.mood = "trouble"
    assert trained(job).is_file() and cloud.trouble == 3 and len(cloud.submits) == 1


def test_a_line_that_breaks_while_sending_is_never_sent_again_by_itself(cloud, job):
    cloud.mood = "broken line"
    with pytest.raises(TrainingFailed, match="broke while the training was being sent"):
        trained(job)
    cloud.mood = ""
    with pytest.raises(TrainingFailed, match="not known whether"):
        trained(job)
    assert len(cloud.submits) == 1
    ticket = json.loads((job.folder / "remote.json").read_text())
    assert ticket["sending"]
    (job.folder / "remote.json").unlink()  # what the message says
    assert trained(job).is_file() and len(cloud.submits) == 2


def test_the_key_goes_to_no_other_host(cloud, project, tmp_path):
    cloud.mood = "other host"
    with pytest.raises(TrainingFailed, match="somebody else"):
        trained(edit_job(project, "fal", tmp_path, tmp_path, options=AGREED))
    for url in ("http://example.com/a", "ftp://127.0.0.1/a", "file:///etc/passwd"):
        with pytest.raises(TrainingFailed, match="not safe"):
            _remote._safe("x", url)
    assert "r8-secret" not in repr(_remote.Wire("x", "https://a", "Bearer r8-secret"))
    assert replicate.ReplicateOptions().upload is False
