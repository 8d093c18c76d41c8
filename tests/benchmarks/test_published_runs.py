"""The table of docs/SCALE.md is what the program says of the published runs."""

from pathlib import Path

import pytest

from gptlab.planning.cluster_choice import SPREAD

PAGE = Path(__file__).resolve().parents[2] / "docs" / "SCALE.md"


def test_the_page_has_the_table_that_the_program_prints():
    import published_runs

    assert published_runs.table() in PAGE.read_text(encoding="utf-8")


def test_every_published_run_is_within_the_range_that_a_plan_gives():
    import published_runs

    for run in published_runs.RUNS:
        planned, _ = published_runs.planned_seconds(run)
        assert SPREAD[0] <= run.seconds / planned <= SPREAD[1], run.name


def test_models_have_the_parameters_that_were_published():
    import published_runs

    from gptlab.model.arithmetic import count_parameters
    from gptlab.training.config import build

    def parameters(model):
        return count_parameters(build(model).model)

    assert parameters(published_runs.nanochat(20, 10)) == pytest.approx(560_988_160, rel=2e-4)
    assert parameters(published_runs.nanochat(32, 16)) == pytest.approx(1_879_048_192, rel=2e-4)
    assert parameters(published_runs.nanochat(34, 17)) == pytest.approx(2_217_082_880, rel=2e-4)
    assert parameters(published_runs.LLAMA_8B) == 8_030_261_248
