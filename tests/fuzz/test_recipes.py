"""Recipes: values of every kind under names of every kind, and text that is no Python."""

from hypothesis import strategies as st

from gptlab.training.config import OPTIONS, build, layer, read_recipe

VALUES = [
    "None", "True", "False", "0", "-1", "1", "3", "10**9", "10**400", "-10**400", "0.5", "1e400",
    "-1e400", "float('nan')", "1e-320", "''", "'x'", "'7'", "'1e9'", "'auto'", "'none'", "'\\0'",
    "'\\ud800'", "'../x'", "'/'", "'a' * 5000", "[]", "{}", "()", "[1]", "b'x'", "1j", "object()",
    "...", "print", "range(3)", "type('T', (), {})()", "'true'",
]  # fmt: skip
NAMES = [*OPTIONS, "learning_rat", "x", "n_layers", "_hidden", "def_"]
BROKEN = ["x = ", "def", "1/0", "import nothing_of_that_name", "raise KeyError", "(" * 300, "\0",
          "exit()", "raise SystemExit(3)", "learning_rate = = 3",
          "n_layer: int = 3", "for n_layer in (1, 2): pass", "x" * 3000, "\ufeffseed = 1",
          "assert False", "f()", "seed = input()"]  # fmt: skip


def lines():
    line = st.builds("{} = {}".format, st.sampled_from(NAMES), st.sampled_from(VALUES))
    return st.one_of(line, line, line, st.sampled_from(BROKEN))


def test_a_malformed_recipe_is_refused_by_name(fuzz):
    path = fuzz.home / "odd.py"

    def attempt(content):
        path.write_bytes(content)

        def use():
            overrides = layer(read_recipe(path), {}, "odd.py")
            build({k: v for k, v in overrides.values.items() if k != "model_preset"})

        # a value that is refused is named by its option
        fuzz.survives(use, "odd.py", "preset", *OPTIONS)

    text = st.lists(lines(), max_size=4).map(
        lambda each: "\n".join(each).encode("utf-8", "surrogatepass")
    )
    fuzz.run("recipes", st.one_of(text, text, text, st.binary(max_size=60)), attempt, 150)


def test_commands_refuse_a_malformed_recipe(fuzz):
    path = fuzz.home / "odd.py"

    def attempt(case):
        each, command = case
        path.write_text("\n".join(each) + "\ndataset = 'plays'\n", encoding="utf-8")
        argv = [*command, "odd.py"]
        fuzz.command(*argv)

    line = st.builds("{} = {}".format, st.sampled_from(NAMES), st.sampled_from(VALUES))
    commands = st.sampled_from(
        [("config", "show"), ("config", "diff", "odd.py"), ("plan",), ("doctor", "--config")]
    )
    cases = st.tuples(st.lists(line, max_size=2), commands)
    fuzz.run("recipes, through commands", cases, attempt, 15)
