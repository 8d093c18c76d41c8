"""Files: complete or not there, one home, and a sentence for what the system refuses."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptlab import files
from gptlab.errors import CheckpointError, DataError
from gptlab.files import (
    atomic_write,
    check_format_version,
    display,
    explain_error,
    read_json,
    sha256_file,
    write_json,
)

ROOT = Path(__file__).resolve().parents[1]


# where files live


def test_the_home_is_beside_the_scripts_wherever_the_command_is_called_from(monkeypatch, tmp_path):
    monkeypatch.delenv("GPTLAB_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert files.home() == ROOT
    assert (files.data_home(), files.out_home()) == (ROOT / "data", ROOT / "out")


def test_the_home_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("GPTLAB_HOME", str(tmp_path))
    assert files.data_home() == tmp_path / "data"
    monkeypatch.setenv("GPTLAB_HOME", "~/lab")
    assert files.out_home() == Path.home() / "lab" / "out"


def test_an_installed_package_without_scripts_works_in_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("GPTLAB_HOME", raising=False)
    monkeypatch.setattr(files, "__file__", str(tmp_path / "site-packages/gptlab/files.py"))
    monkeypatch.chdir(tmp_path)
    assert files.home() == tmp_path


def test_a_path_is_shown_as_short_as_it_can_be(monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert display(tmp_path / "here" / "a" / "b.txt") == str(Path("a/b.txt"))
    assert display("a/../b.txt") == "b.txt"
    assert display(tmp_path / "here") == "."
    assert display(tmp_path / "other") == str(tmp_path / "other")


# atomic writing


def test_a_file_is_there_only_when_it_is_whole(tmp_path):
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"old")
        assert not path.exists()
    with atomic_write(path) as file:
        file.write(b"new and longer")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_text_is_utf8_with_plain_line_ends_everywhere(tmp_path):
    path = tmp_path / "ü.txt"
    with atomic_write(path, "w") as file:
        file.write("smörgås 😀\nline\r\n")
    assert path.read_bytes() == "smörgås 😀\nline\r\n".encode()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_former_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("former", encoding="utf-8")
    with pytest.raises(error), atomic_write(path, "w") as file:
        file.write("half")
        raise error
    assert path.read_text(encoding="utf-8") == "former"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_former_file_and_names_it(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.bin"
    path.write_bytes(b"former")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError) as refusal, atomic_write(path) as file:
            file.write(bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"former" and os.listdir(tmp_path) == ["a.bin"]
    sentence = str(explain_error(refusal.value))
    assert sentence.startswith(f"The disk is full while writing {path}: ")


def test_a_refused_write_names_the_file_and_not_its_temporary_name(tmp_path):
    with pytest.raises(FileNotFoundError) as refusal, atomic_write(tmp_path / "no" / "a.txt"):
        pass
    assert refusal.value.filename == str(tmp_path / "no" / "a.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as refusal, atomic_write(tmp_path / "folder"):
        pass
    assert refusal.value.filename == str(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def test_an_error_about_another_file_keeps_that_files_name(tmp_path):
    with pytest.raises(FileNotFoundError) as refusal, atomic_write(tmp_path / "a.txt"):
        open(tmp_path / "source.txt", encoding="utf-8")
    assert refusal.value.filename == str(tmp_path / "source.txt")


# JSON

KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)  # a sync of the disk takes what it takes
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_json_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_is_readable_text(tmp_path):
    write_json(tmp_path / "a.json", {"name": "smörgås"})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "name": "smörgås"\n}\n'.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": ', "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "holds list, not a JSON object"),
        (b"null", "holds NoneType, not a JSON object"),
    ],
)
def test_a_damaged_json_file_is_named(tmp_path, content, words):
    path = tmp_path / "meta.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        read_json(path)
    assert str(error.value).startswith(str(path)) and str(error.value).endswith(".")


# versions and hashes


def test_known_versions_are_read_and_newer_ones_refused_by_name(tmp_path):
    for kind, newest in files.FORMAT_VERSIONS.items():
        for version in range(1, newest + 1):
            check_format_version(version, kind, "x.pt", CheckpointError)
        with pytest.raises(CheckpointError, match=rf"x\.pt is a {kind}.*version {newest + 1}.*upd"):
            check_format_version(newest + 1, kind, "x.pt", CheckpointError)


@pytest.mark.parametrize("version", [None, 0, -1, True, "1", 1.0])
def test_what_is_no_version_is_foreign(version):
    with pytest.raises(DataError, match=r"x\.json is not a dataset of gptlab"):
        check_format_version(version, "dataset", "x.json", DataError)


@pytest.mark.parametrize("size", [0, 1, 1 << 22, (1 << 22) + 1, 9_000_000])
def test_the_hash_is_that_of_the_whole_file(tmp_path, size):
    content = (b"0123456789" * (size // 10 + 1))[:size]
    (tmp_path / "a.bin").write_bytes(content)
    reported = []
    digest = sha256_file(tmp_path / "a.bin", progress=reported.append)
    assert digest == sha256_file(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()
    assert sum(reported) == size and all(0 < part <= 1 << 22 for part in reported)


# what the system refuses


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "The disk is full while writing a.txt: free some space"),
        (errno.EDQUOT, "The disk is full while writing a.txt: free some space"),
        (errno.EACCES, "No permission for a.txt: change its permissions"),
        (errno.EPERM, "No permission for a.txt: change its permissions"),
        (errno.EROFS, "No permission for a.txt: change its permissions"),
        (errno.ENOENT, "a.txt does not exist: check the spelling of the path."),
        (errno.EISDIR, "a.txt is a folder, but a file is needed there."),
        (errno.ENOTDIR, "a.txt lies below something that is a file, not a folder."),
        (errno.EIO, f"a.txt: {os.strerror(errno.EIO)}."),
    ],
)
def test_each_refusal_is_a_sentence_with_the_file(number, sentence):
    for name in ("a.txt", b"a.txt", Path("a.txt")):
        shown = str(explain_error(OSError(number, os.strerror(number), name)))
        assert shown.startswith(sentence) and shown.endswith(".")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError("The tape is torn."), "The tape is torn."),
        (OSError(), "OSError."),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused."),
        (OSError(errno.EIO, "Input/output error", 3), "Input/output error."),
    ],
)
def test_a_refusal_without_a_file_is_a_sentence_too(error, sentence):
    assert str(explain_error(error)) == sentence
    assert "while writing" not in str(explain_error(OSError(errno.ENOSPC, "No space left")))


def test_a_file_system_that_cannot_sync_a_folder_is_no_reason_to_fail(tmp_path, monkeypatch):
    sync = os.fsync

    def refuse_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with atomic_write(tmp_path / "a.txt") as file:
        file.write(b"x")
    assert (tmp_path / "a.txt").read_bytes() == b"x"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="Linux only")
def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    order, sync, replace = [], os.fsync, os.replace

    def record_sync(descriptor):
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("rename"), replace(*a)))
    with atomic_write(tmp_path / "a.txt") as file:
        file.write(b"x")
    assert order == ["file", "rename", "folder"]
