"""A checkout of a revision: clean, apart from the clone, gone afterwards."""

import re
import subprocess

import pytest

from gptlab.analysis.revisions import checkout, commit_of
from gptlab.errors import ConfigError, RunError


@pytest.fixture
def clone(tmp_path):
    """A repository of two commits, with an edit that is not committed."""
    folder = tmp_path / "clone"
    folder.mkdir()

    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)

    git("init", "-q")
    for text in ("one", "two"):
        (folder / "a.py").write_text(text)
        git("add", "a.py")
        git("commit", "-qm", text)
    (folder / "a.py").write_text("edited")
    return folder


def test_a_checkout_has_the_files_of_the_revision_and_leaves_the_clone_alone(clone):
    for revision, text in (("HEAD", "two"), ("HEAD~1", "one"), (commit_of("HEAD~1", clone), "one")):
        with checkout(revision, clone) as folder:
            assert (folder / "a.py").read_text() == text
        assert not folder.exists()
    assert (clone / "a.py").read_text() == "edited"
    known = subprocess.run(["git", "-C", clone, "worktree", "list"], capture_output=True, text=True)
    assert len(known.stdout.splitlines()) == 1


def test_a_revision_that_does_not_exist_is_refused_in_a_sentence(clone):
    for revision in ("no-such-branch", "--help", " "):
        with pytest.raises(ConfigError, match="git revision"):
            commit_of(revision, clone)


def test_what_the_refusal_of_a_revision_lists_can_be_named(clone):
    with pytest.raises(ConfigError) as caught:
        commit_of("no-such-branch", clone)
    (command,) = re.findall(r"\((git log --\w+)", caught.value.fix)
    words = ["git", "-C", clone, *command.split()[1:]]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        assert commit_of(line.split()[0], clone).startswith(line.split()[0])


def test_code_outside_a_clone_has_no_revisions(clone):
    (clone / "inner").mkdir()  # lies in a repository, but is none
    with pytest.raises(RunError, match="is not a git clone"):
        commit_of("HEAD", clone / "inner")
