import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from gptlab.data.hub import HubName
from gptlab.data.token_files import open_dataset
from gptlab.data.tokenizer import train_bpe

REPOSITORY = Path(__file__).resolve().parents[2]
COMMIT = "a" * 40
CARD = "configs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/*.jsonl}\n"
STORIES = [f"story number {i}\nthe end" for i in range(200)]
FILES = {
    "README.md": f"---\n{CARD}---\n".encode(),
    "data/0.jsonl": "".join(json.dumps({"text": s, "n": 1}) + "\n" for s in STORIES).encode(),
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as streaming one public dataset, me/stories, needs."""

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        if path == "/":
            return self.reply(200, b"hub")
        if path.startswith("/api/datasets/me/stories/tree/"):
            inside = path.partition(f"/tree/{COMMIT}")[2].strip("/")
            found = [name for name in FILES if os.path.dirname(name) == inside]
            tree = [{"type": "file", "path": n, "size": len(FILES[n]), "oid": "b"} for n in found]
            if not inside:
                tree.append({"type": "directory", "path": "data", "size": 0, "oid": "c"})
            return self.reply(200, json.dumps(tree).encode())
        if path.startswith("/api/datasets/me/stories"):
            siblings = [{"rfilename": name} for name in FILES]
            info = {"id": "me/stories", "sha": COMMIT, "private": False, "siblings": siblings}
            return self.reply(200, json.dumps(info | {"tags": [], "downloads": 0}).encode())
        name = path.partition("/datasets/me/stories/resolve/")[2].partition("/")[2]
        if name not in FILES:
            missing = "EntryNotFound" if "me/stories" in path else "RepoNotFound"
            return self.reply(404, b"", {"X-Error-Code": missing})
        content, asked = FILES[name], self.headers.get("Range")
        if asked and self.command == "GET":
            first, last = asked.removeprefix("bytes=").split("-")
            part = content[int(first) : int(last or len(content)) + 1]
            last = int(first) + len(part) - 1
            place = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            return self.reply(206, part, place)
        return self.reply(200, content)

    do_HEAD = do_GET

    def reply(self, code, content, headers=None):
        self.send_response(code)
        standard = {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, "ETag": '"b"'}
        for key, value in (standard | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def prepare(home):
    """Run prepare.py against a hub on this machine (in a process: it reads HF_ENDPOINT once)."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        environment = os.environ | {
            "GPTLAB_HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        }

        def prepare(*argv):
            return subprocess.run(
                [sys.executable, str(REPOSITORY / "prepare.py"), *argv],
                cwd=home,
                env=environment,
                capture_output=True,
                text=True,
            )

        yield prepare
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_streamed(prepare):
    done = prepare("hf:me/stories")
    assert done.returncode == 0, done.stderr
    dataset = open_dataset("stories")
    text = "".join(dataset.tokenizer.decode(part) for part in (dataset.train, dataset.val))
    assert sorted(text.replace("the end", "the end|").split("|")[:-1]) == sorted(STORIES)
    assert dataset.meta["documents"] == dataset.meta["split"]["separators"] == len(STORIES)
    again = prepare("hf:me/stories")
    assert "already prepared" in again.stdout


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_streamed_straight_into_shards(prepare, home):
    train_bpe(STORIES, 300).save(home / "tokenizer.json")
    words = ["--streaming", "--tokenizer", str(home / "tokenizer.json"), "--shard_tokens", "1k"]
    done = prepare("hf:me/stories", *words)
    assert done.returncode == 0, done.stderr
    assert "The first shard stands" in done.stderr
    dataset = open_dataset("stories")
    text = "".join(dataset.tokenizer.decode(part) for part in (dataset.train, dataset.val))
    assert sorted(text.replace("the end", "the end|").split("|")[:-1]) == sorted(STORIES)
    assert len(dataset.meta["shards"]["train"]) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["hf:me/stories:default:test"], "Available splits: ['train']"),
        (["hf:me/stories:other"], "'other'"),
        (["hf:me/nothing"], "hf:me/nothing cannot be read"),
        (["hf:me/stories", "--column", "n"], "field 'n', holds int, not text"),
        (["hf:me/stories", "--column", "body"], "its fields are text, n"),
    ],
)
def test_what_the_hub_does_not_have_is_a_sentence(prepare, home, argv, sentence):
    done = prepare(*argv)
    assert done.returncode == 2 and sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert os.listdir(home / "data") == []


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("hf:gpt/stories", HubName("gpt/stories", None, "train")),
        ("hf:gpt/stories:small", HubName("gpt/stories", "small", "train")),
        ("hf:stories:small:test", HubName("stories", "small", "test")),
    ],
)
def test_a_hub_name_has_a_repository_a_subset_and_a_split(word, name):
    assert HubName.parse(word) == name
    assert name.short == "stories"
