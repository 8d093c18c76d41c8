"""Records of a run, malformed."""

import pytest


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("metrics.jsonl", 12),
        ("config.py", 12),
        ("provenance.json", 10),
        ("trace.jsonl", 8),
        ("source.zip", 5),
    ],
)
def test_a_malformed_record_of_a_run_is_refused_by_name(fuzz, name, examples):
    path = fuzz.home / "out" / "plays" / name
    valid = path.read_bytes()
    of_json = name.partition(".")[2].startswith("json")
    cases = fuzz.json_file(valid) if of_json else fuzz.bytes_file(valid)
    page = fuzz.home / "out" / "plays" / "report.html"
    commands = {
        "metrics.jsonl": [("info",), ("doctor", "plays"), ("report", "plays")],
        "config.py": [
            ("doctor", "plays"), ("report", "plays"), ("config", "show", "plays"),
            ("config", "diff", "plays", "plays"),
        ],
        "provenance.json": [("replay", "plays", "--steps", "1"), ("report", "plays")],
        "trace.jsonl": [("replay", "plays", "--steps", "1")],
        "source.zip": [("replay", "plays", "--steps", "1")],
    }  # fmt: skip
    for argv in commands[name]:
        assert fuzz.command(*argv, writes=True) < 2
        page.unlink(missing_ok=True)

    def attempt(content):
        path.write_bytes(content)
        for argv in commands[name]:
            fuzz.command(*argv, writes=True)
            page.unlink(missing_ok=True)

    fuzz.run(name, cases, attempt, examples)


def test_a_run_with_malformed_records_can_be_asked_for_a_step(fuzz):
    path = fuzz.home / "out" / "plays" / "metrics.jsonl"

    def attempt(content):
        path.write_bytes(content)
        fuzz.command("blame", "plays", "--step", "2", "--top", "1")

    fuzz.run("metrics.jsonl", fuzz.json_file(path.read_bytes()), attempt, 10)


@pytest.mark.parametrize("name", ["config.py", "provenance.json"])
def test_blame_with_malformed_settings(fuzz, name):
    path = fuzz.home / "out" / "plays" / name
    valid = path.read_bytes()
    cases = fuzz.json_file(valid) if name.endswith("json") else fuzz.bytes_file(valid)

    def attempt(content):
        path.write_bytes(content)
        fuzz.command("blame", "plays", "--step", "2", "--top", "1")

    fuzz.run(name, cases, attempt, 10)


def test_trace_with_a_malformed_provenance(fuzz):
    path = fuzz.home / "out" / "plays" / "provenance.json"

    def attempt(content):
        path.write_bytes(content)
        fuzz.command("trace", "plays", "--file", "texts/a.txt")

    fuzz.run("provenance.json", fuzz.json_file(path.read_bytes()), attempt, 10)
