"""Conversations in every form that people keep them in: what is written is what is read."""

import csv
import dataclasses
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptlab.data.corpora import find
from gptlab.data.messages import NoConversationError, conversation_of
from gptlab.data.prepare import PrepareOptions, prepare
from gptlab.data.text_files import Reading
from gptlab.data.token_files import open_dataset
from gptlab.data.tokenizer import train_bpe
from gptlab.errors import ConfigError, DataError

# A conversation: an optional system text, then questions with their answers.
TEXTS = st.text(
    st.characters(exclude_characters="\r\0", exclude_categories=("Cs",)), min_size=1, max_size=30
)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)
NAMES = {
    "ShareGPT": ("from", "value", {"user": "human", "assistant": "gpt", "system": "system"}),
    "OpenAI": (
        "role", "content", {"user": "user", "assistant": "assistant", "system": "developer"}
    ),
    "Claude": ("sender", "text", {"user": "human", "assistant": "assistant", "system": "system"}),
}  # fmt: skip
LISTS = {"ShareGPT": "conversations", "OpenAI": "messages", "Claude": "chat_messages"}


def messages(turns, system=None):
    found = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        found.append({"role": "user", "content": question})
        found.append({"role": "assistant", "content": answer})
    return found


def written(form, turns, system):
    """A row that holds the conversation in a form."""
    role, text, names = NAMES[form]
    return {
        "id": 7,
        LISTS[form]: [
            {role: names[m["role"]], text: m["content"]} for m in messages(turns, system)
        ],
    }


def read(row, column=None):
    found = conversation_of(row, column, "x.jsonl line 1")
    return found and found.messages


@given(st.sampled_from(sorted(NAMES)), TURNS, st.none() | TEXTS)
@settings(deadline=None)
def test_a_list_of_messages_is_read_as_it_was_written_whatever_its_keys(form, turns, system):
    row = written(form, turns, system)
    assert read(row) == messages(turns, system)
    assert read(row, LISTS[form]) == messages(turns, system)
    as_json = {**row, LISTS[form]: json.dumps(row[LISTS[form]])}  # as a CSV file holds it
    assert read(as_json) == messages(turns, system)


SPEAKERS = [("human", "assistant"), ("user", "bot"), ("User", "AI"), ("question", "answer")]


@given(st.sampled_from(SPEAKERS), TURNS, st.sampled_from(["conversation", "turns", "messages"]))
@settings(deadline=None)
def test_turns_that_are_named_by_who_speaks_are_read(names, turns, field):
    pairs = [dict(zip(names, turn, strict=True)) for turn in turns]
    assert read({"id": 1, field: pairs}) == messages(turns)
    assert read({field: json.dumps(pairs)}) == messages(turns)
    if len(turns) == 1:
        assert read(pairs[0]) == messages(turns)
        assert read({"id": 1, **pairs[0], "text": "of a table"}) is None


@given(TURNS, TEXTS, st.sampled_from(["whole", "answers", "text", "asked as messages"]))
@settings(deadline=None)
def test_of_preference_data_the_chosen_side_is_read(turns, rejected, form):
    talk = messages(turns)
    *before, answer = talk
    other = [*before, {"role": "assistant", "content": rejected}]
    if form == "whole":
        row = {"chosen": talk, "rejected": other, "score_chosen": 1.5}
    elif form == "asked as messages":
        row = {"prompt": before, "chosen": [answer], "rejected": other[-1:]}
    else:
        talk = messages(turns[:1])
        answers = [talk[1]], [{"role": "assistant", "content": rejected}]
        if form == "text":
            answers = talk[1]["content"], rejected
        row = {"prompt": talk[0]["content"], "chosen": answers[0], "rejected": answers[1]}
    found = conversation_of(row, None, "x")
    assert found.messages == talk
    if form != "text":
        assert "rejected one is left out" in found.form


def test_the_chosen_answer_may_have_any_form_of_messages_and_an_empty_one_is_refused():
    chosen = [{"from": "gpt", "value": "a"}]
    row = {"prompt": "q", "chosen": chosen, "rejected": [{"from": "gpt", "value": "b"}]}
    assert read(row) == messages([("q", "a")])
    for odd in ([], [None], [{"role": "assistant"}], ["a"]):
        with pytest.raises(NoConversationError):
            read({"prompt": "q", "chosen": odd, "rejected": "b"})


def test_a_transcript_as_the_chosen_answer_is_its_turns():
    text = "\n\nHuman: one\n\nor two?\n\nAssistant: two\n\nHuman: why\n\nAssistant: so"
    row = {"chosen": text, "rejected": text[:-2] + "no"}
    assert read(row) == messages([("one\n\nor two?", "two"), ("why", "so")])
    assert read({"chosen": "no turns", "rejected": "none"}) is None


@pytest.mark.parametrize("turn", ["messages", "pairs"])
def test_a_row_that_is_a_list_of_turns_is_a_conversation(home, turn):
    talk = messages([("q", "a"), ("r", "b")])
    pairs = [{"human": "q", "assistant": "a"}, {"human": "r", "assistant": "b"}]
    rows = [talk if turn == "messages" else pairs] * 3
    (home / "x.json").write_text(json.dumps(rows), encoding="utf-8")
    reading = Reading()
    source = find(["x.json"], None, lambda _: None, how=reading)
    found = ["".join(document) for document in source.documents(reading)]
    assert list(map(json.loads, found)) == [talk] * 3
    assert str(reading.chats).startswith("Conversations: 3 with messages")


def test_a_role_that_nobody_knows_names_the_column_to_read_as_text(home):
    talk = [{"role": "Alice", "content": "a long question"}, {"role": "Bob", "content": "no"}]
    (home / "x.jsonl").write_text("\n".join([json.dumps({"messages": talk})] * 2), "utf-8")

    def documents(column=None):
        reading = Reading(column=column)
        source = find(["x.jsonl"], None, lambda _: None, how=reading)
        return ["".join(document) for document in source.documents(reading)]

    with pytest.raises(DataError, match=r"the role 'Alice'.* with --column messages\.content"):
        documents()
    assert documents("messages.content") == ["a long question\nno"] * 2


@given(TURNS)
@settings(deadline=None)
def test_chatgpts_export_is_the_branch_that_ends_in_the_newest_message(turns):
    nodes, parent = {"root": {"message": None, "parent": None}}, "root"
    for number, message in enumerate(messages(turns)):
        content = {"content_type": "text", "parts": [message["content"]]}
        node = {"author": {"role": message["role"]}, "content": content}
        nodes[f"n{number}"] = {"message": node, "parent": parent}
        nodes[f"other{number}"] = {"message": node, "parent": parent}  # a retry that was left
        parent = f"n{number}"
    row = {"title": "x", "mapping": nodes, "current_node": parent}
    assert read(row) == [m for m in messages(turns) if m["content"].strip()]


def test_a_conversation_of_an_export_without_text_is_counted_and_not_odd(home, tokenizer):
    def exported(n):
        def node(role, parent, **content):
            return {"parent": parent, "message": {"author": {"role": role}, "content": content}}

        return {
            "title": f"talk {n}",
            "mapping": {
                "a": node("user", None, parts=[f"question {n}"]),
                "b": node("assistant", "a", content_type="code", text=f"answer {n}"),
            },
        }

    rows = [exported(n) for n in range(20)]
    rows[::4] = [{"title": "", "mapping": {"a": {"parent": None, "message": None}}}] * 5
    write_rows(home / "conversations.json", rows)
    made = prepare("conversations.json", tokenizer)
    assert "Conversations without text skipped: 5." in made.notes
    assert "Conversations: 15 of ChatGPT's export." in made.notes
    assert learned(made.dataset).count("answer") == 15


def test_what_a_message_of_claudes_export_holds_beside_its_text_is_counted(home, tokenizer):
    def said(sender, text):
        parts = [{"type": "tool_use", "name": "x"}, {"type": "text", "text": text}]
        return {"sender": sender, "text": text, "content": parts, "attachments": [{"id": 1}]}

    rows = [
        {
            "uuid": "x",
            "chat_messages": [said("human", f"question {n}"), said("assistant", f"a {n}")],
        }
        for n in range(20)
    ]
    write_rows(home / "conversations.json", rows)
    made = prepare("conversations.json", tokenizer)
    assert any("left out of messages: attachments (40)." in note for note in made.notes)


@pytest.mark.parametrize(
    ("names", "column"),
    [
        (("instruction", "output"), None),
        (("prompt", "completion"), None),
        (("prompt", "response"), None),
        (("question", "answer"), None),
        (("input", "target"), None),
        (("instruction", "output"), "instruction,output"),
        (("question", "answer"), "answer, question"),
    ],
)
def test_a_question_and_its_answer_are_two_messages(names, column):
    row = {names[0]: "Who?", names[1]: "I.", "category": "x"}
    assert read(row, column) == messages([("Who?", "I.")])


def test_an_alpaca_rows_input_follows_its_instruction():
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert read(row)[0]["content"] == "Add.\n\n1 and 2"
    assert read({**row, "input": " "})[0]["content"] == "Add."
    assert read(row, "instruction,output")[0]["content"] == "Add."
    more = {**row, "input": "", "system": "Be brief.", "history": [["a", "b"]]}
    assert read(more) == messages([("a", "b"), ("Add.", "3")], "Be brief.")


def test_a_prompt_and_a_completion_may_be_lists_of_messages():
    talk = messages([("a", "b"), ("c", "d")])
    assert read({"prompt": talk[:3], "completion": talk[3:]}) == talk


def test_a_table_of_texts_stays_one_and_a_named_field_is_plain_text():
    assert read({"text": "x", "prompt": "a", "completion": "b"}) is None
    assert read({"instruction": "a", "output": "b"}, "output") is None
    assert read({"turns": ["a", "b"], "title": "x"}) is None  # no roles, so no conversation
    assert read({"title": "a", "body": "b"}, "title,body") is None


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": null}'}}
    ],
}


def test_all_that_openai_allows_in_a_message_is_read():
    found = conversation_of(
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
                {"role": "user", "name": "ann", "content": ["a", {"type": "text", "text": "b"}]},
                CALL,
                {"role": "tool", "tool_call_id": "c1", "content": "3"},
                {"role": "assistant", "content": None, "function_call": {"name": "f"}},
                {"role": "function", "name": "f", "content": "4"},
                {"role": "assistant", "content": None, "refusal": "No.", "audio": {"id": "x"}},
            ],
            "tools": [{"type": "function", "function": {"name": "add"}}],
        },
        None,
        "x.jsonl line 1",
    )
    assert [m["role"] for m in found.messages] == (
        ["system", "user", "assistant", "tool", "assistant", "tool", "assistant"]
    )
    assert [m["content"] for m in found.messages] == [
        "Be brief.",
        "ab",
        None,
        "3",
        None,
        "4",
        "No.",
    ]
    assert found.messages[1]["name"] == "ann" and found.messages[3]["tool_call_id"] == "c1"
    assert found.messages[2]["tool_calls"][0]["function"] == {
        "name": "add",
        "arguments": {"a": None},
    }
    assert found.messages[4]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert found.left_out == {"audio": 1}
    assert json.loads(found.to_json())["tools"] == found.tools


def test_pictures_in_a_message_are_left_out_and_counted():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    asked = [{"type": "text", "text": "What is "}, picture, picture, {"text": "this?"}]
    row = [{"role": "user", "content": asked}, {"role": "assistant", "content": "A cat."}]
    found = conversation_of({"messages": row}, None, "x.jsonl line 1")
    assert found.messages[0]["content"] == "What is this?"
    assert found.left_out == {"parts of the type image_url": 2}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": []}, "has no messages"),
        ({"messages": [{"role": "user"}]}, "message 1, has no text"),
        ({"messages": [{"role": "user", "content": 3}]}, "message 1, has no text"),
        ({"messages": [{"content": "a"}]}, "has the role None"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "no text beside",
        ),
        ({"messages": [{"role": "user", "content": ["a", {"type": "text", "text": 3}]}]}, "(text)"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "without the name"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, "'narrator'"),
        ({"prompt": None, "completion": "x"}, "'prompt', has no text"),
        ({"instruction": "x", "output": None}, "'output', has no text"),
    ],
)
def test_a_row_that_cannot_be_a_conversation_says_where_and_why(row, problem):
    with pytest.raises(NoConversationError, match=re.escape(problem)):
        read(row)


# Files --------------------------------------------------------------------------------------------


def write_rows(path, rows):
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix in (".jsonl", ".txt"):
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            out = csv.DictWriter(file, list(rows[0]))
            out.writeheader()
            out.writerows(
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
                for row in rows
            )
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".txt")  # .txt: JSON Lines under that name


@given(
    st.sampled_from(SUFFIXES),
    st.sampled_from([*sorted(NAMES), "pairs"]),
    st.lists(TURNS, min_size=1, max_size=5),
)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_kind_of_file_gives_the_conversations_that_were_written(
    tmp_path, suffix, form, talks
):
    if form == "pairs":
        talks = [turns[:1] for turns in talks]
        rows = [{"prompt": question, "completion": answer} for [(question, answer)] in talks]
    else:
        rows = [written(form, turns, None) for turns in talks]
    path = tmp_path / f"rows{suffix}"
    write_rows(path, rows)
    reading = Reading()
    source = find([str(path)], None, lambda _: None)
    found = ["".join(blocks) for blocks in source.documents(reading)]
    assert [json.loads(text) for text in found] == [messages(turns) for turns in talks]
    assert reading.conversations == sum(reading.chats.forms.values()) == len(talks)
    assert sum(reading.chats.roles.values()) == sum(2 * len(turns) for turns in talks)


@pytest.fixture
def tokenizer(home):
    train_bpe(["question answer User Assistant"] * 3, 300).save(home / "tokenizer.json")
    return PrepareOptions(tokenizer="tokenizer.json")


def learned(dataset):
    ids = [i for split in ("train", "val") for i in getattr(dataset, split)[
        getattr(dataset, f"{split}_loss_mask")]]  # fmt: skip
    return dataset.tokenizer.decode(ids, keep_special=True)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sharegpt_is_a_chat_dataset_and_its_roles_are_said_in_one_line(home, tokenizer, suffix):
    rows = [written("ShareGPT", [(f"question {n}", f"answer {n}")], None) for n in range(300)]
    write_rows(home / f"sharegpt{suffix}", rows)
    made = prepare(f"sharegpt{suffix}", tokenizer)
    assert (
        "Conversations: 300 in ShareGPT's form (conversations); roles read: 'human' as user (300), "
        "'gpt' as assistant (300)." in made.notes
    )
    text = learned(open_dataset("sharegpt"))
    assert sorted(text.split("<|endoftext|>")) == sorted(["", *(f"answer {n}" for n in range(300))])


def test_alpaca_learns_the_answer_only(home, tokenizer):
    rows = [
        {"instruction": f"question {n}", "input": "", "output": f"answer {n}"} for n in range(300)
    ]
    write_rows(home / "alpaca.jsonl", rows)
    made = prepare("alpaca.jsonl", tokenizer)
    assert (
        "Conversations: 300 with instruction and input as the question, output as the answer."
        in made.notes
    )
    text = learned(made.dataset)
    assert text.count("answer") == 300 and "question" not in text


def test_messages_are_found_in_a_parquet_file_with_other_columns(home, tokenizer):
    rows = [
        {"prompt": f"question {n}", "messages": messages([(f"question {n}", f"answer {n}")])}
        for n in range(50)
    ]
    write_rows(home / "chat.parquet", rows)
    made = prepare("chat.parquet", tokenizer)
    assert learned(made.dataset).count("answer") == 50
    named = prepare("chat.parquet", PrepareOptions("named", "tokenizer.json", column="messages"))
    assert named.dataset.fingerprint == made.dataset.fingerprint


def test_calls_of_tools_are_learned_and_what_the_tools_say_is_not(home, tokenizer):
    rows = [{"messages": messages([(f"question {n}", f"answer {n}")])} for n in range(300)]
    rows[7]["messages"][1:1] = [CALL, {"role": "tool", "content": "3 of the tool"}]
    write_rows(home / "tools.jsonl", rows)
    dataset = prepare("tools.jsonl", tokenizer).dataset
    text = learned(dataset)
    assert text.count('"name": "add", "arguments": {"a": null}') == 1 and "of the tool" not in text
    assert text.count("<|endoftext|>") == 301


def test_a_few_rows_that_are_no_conversations_are_skipped_counted_and_named(home, tokenizer):
    rows = [{"messages": messages([(f"question {n}", f"answer {n}")])} for n in range(300)]
    for number in (149, 200, 201):
        rows[number] = {"messages": None, "id": number}
    write_rows(home / "talk.jsonl", rows)
    made = prepare("talk.jsonl", tokenizer)
    assert (
        "Skipped, of 300 rows: talk.jsonl line 150 has no messages: its fields are messages, id "
        "and 2 other rows."
    ) in made.notes
    meta = made.dataset.meta
    assert meta["train_documents"] + meta["val_documents"] == 297
    assert meta["counts"]["odd rows skipped"] == 3
    rows[202] = rows[201]
    write_rows(home / "more.jsonl", rows)
    with pytest.raises(DataError) as caught:
        prepare("more.jsonl", tokenizer)
    assert "more.jsonl line 150 has no messages" in str(caught.value)
    assert "and 3 other rows of 300" in str(caught.value)
    way = re.search(
        r"; skip such rows with --max_bad_rows (\S+?), or correct them", str(caught.value)
    )[1]
    assert not (home / "data" / "more").exists()
    followed = dataclasses.replace(tokenizer, max_bad_rows=way)
    assert prepare("more.jsonl", followed).dataset.meta["documents"] == 296


def test_a_file_of_nothing_but_such_rows_is_refused_with_the_form_that_is_wanted(home, tokenizer):
    write_rows(home / "bad.jsonl", [{"messages": [{"content": 1}]}] * 20)
    with pytest.raises(DataError) as caught:
        prepare("bad.jsonl", tokenizer)
    assert "bad.jsonl line 1, message 1, has the role None" in str(caught.value)
    assert "the roles are" in str(caught.value)
    write_rows(home / "empty.jsonl", [{"messages": []}] * 20)
    with pytest.raises(DataError, match=re.escape('a row is {"messages": [{"role": "user"')):
        prepare("empty.jsonl", tokenizer)


def test_conversations_for_a_tokenizer_that_is_learned_here_are_refused_with_both_ways_out(home):
    write_rows(home / "pairs.jsonl", [{"question": "a", "answer": f"b{n}"} for n in range(20)])
    with pytest.raises(ConfigError, match=r"--tokenizer .* --column"):
        prepare("pairs.jsonl")
    assert prepare("pairs.jsonl", PrepareOptions(column="answer", split="tail", val_fraction=0.5))
