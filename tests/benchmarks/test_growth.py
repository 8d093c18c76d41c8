"""What the growth benchmark keeps fixed, and that its step measures what it claims."""


def test_only_one_thing_grows_in_each_series():
    import growth

    for quick in (True, False):
        series = growth.points(quick)
        tokens = {
            row["shape"]["block_size"] * row["batch_size"] for row in series["context"].values()
        }
        assert len(tokens) == 1
        for name, grows in (("context", "block_size"), ("vocabulary", "vocab_size")):
            shapes = [dict(row["shape"]) for row in series[name].values()]
            values = [shape.pop(grows) for shape in shapes]
            assert values == sorted(set(values)) and all(shape == shapes[0] for shape in shapes)
        assert len({row["batch_size"] for row in series["vocabulary"].values()}) == 1
        assert len({str(row["shape"]) for row in series["batch"].values()}) == 1


def test_the_sizes_are_what_their_names_say():
    import growth

    from gptlab.model.arithmetic import count_parameters
    from gptlab.model.config import GPTConfig

    for name, shape in growth.SIZES.items():
        millions = count_parameters(GPTConfig(**shape)) / 1e6
        assert abs(millions / float(name[:-1]) - 1) < 0.15, (name, millions)


def test_a_point_reports_its_memory_and_the_planned():
    import growth

    shape = dict(n_layer=1, n_head=2, n_embd=32, vocab_size=64, block_size=16)
    found = growth.measure(shape, batch_size=2, steps=2)
    assert found["tokens"] == 32 and len(found["seconds"]) == 2
    assert found["planned_bytes"] > 0 and found["peak_bytes"] >= 0
