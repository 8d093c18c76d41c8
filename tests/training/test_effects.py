"""An option that can have no effect in this run is refused, or said in one line."""

import pytest

from gptlab.errors import ConfigError
from gptlab.training.config import OPTIONS, Overrides, build
from gptlab.training.effects import TOO_LATE, UNUSED, refuse_unused, without_effect

RUN = dict(
    max_iters=100, warmup_iters=5, lr_decay_iters=100, min_lr=1e-4, eval_interval=10,
    eval_tokens=256,
)  # fmt: skip
# option -> (what gives it no effect, what gives it one, a piece of the sentence)
CASES = {
    "distill": (dict(distill=0.5), dict(teacher="x"), "there is no teacher"),
    "lora_alpha": (dict(lora_alpha=8.0), dict(lora_rank=4, init_from="x"), "no adapters"),
    "lora_targets": (dict(lora_targets="q_proj"), dict(lora_rank=4, init_from="x"), "no adapters"),
    "muon_momentum": (dict(muon_momentum=0.9), dict(optimizer="muon"), "adamw, not muon"),
    "decay_fraction": (dict(decay_fraction=0.5), dict(schedule="wsd"), "cosine, not wsd"),
    "sample_prompt": (dict(sample_prompt="To"), dict(sample_interval=10), "no samples"),
    "use_swiglu": (
        dict(use_swiglu=False, intermediate_size=0), dict(intermediate_size=8), "no MLP",
    ),
    "mlp_ratio": (dict(mlp_ratio=3.0, intermediate_size=0), dict(intermediate_size=8), "no MLP"),
    "n_expert_active": (dict(n_expert_active=3), dict(n_expert=4), "no experts"),
    "expert_size": (dict(expert_size=8), dict(n_expert=4), "no experts"),
    "expert_balance": (dict(expert_balance=0.1), dict(n_expert=4), "no experts"),
    "rope_theta": (
        dict(rope_theta=1e6, position_encoding="learned"), dict(position_encoding="rope"),
        "not rope",
    ),
    "warmup_iters": (dict(warmup_iters=100), dict(max_iters=101), "0.001 is never reached"),
    "lr_decay_iters": (dict(lr_decay_iters=101), dict(max_iters=101), "never comes down"),
    "eval_interval": (dict(eval_interval=101), dict(max_iters=101), "the only evaluation"),
    "checkpoint_interval": (
        dict(checkpoint_interval=20), dict(checkpoint_interval=15), "each evaluation saves",
    ),
    "sample_interval": (dict(sample_interval=15, max_iters=25), dict(max_iters=30), "at the end"),
    "lens_interval": (dict(lens_interval=101), dict(max_iters=101), "the only look inside"),
    "early_stopping": (dict(early_stopping=9), dict(early_stopping=8), "after step 100 at the"),
    "profile_steps": (
        dict(profile_steps="101:103"), dict(profile_steps="100:103"), "ends after 100 steps",
    ),
    "log_interval": (dict(log_interval=101), dict(max_iters=101), "only its first step"),
}  # fmt: skip


def said(values, source="command line"):
    overrides = Overrides(values, dict.fromkeys(values, source))
    return without_effect(build({**RUN, **values}), overrides), overrides


def test_every_rule_has_a_case_and_every_rule_is_of_an_option():
    assert set(CASES) == set(UNUSED) | set(TOO_LATE) <= set(OPTIONS)


@pytest.mark.parametrize("name", CASES)
def test_an_option_without_effect_is_named_in_one_line_and_one_with_effect_is_not(name):
    idle, used, piece = CASES[name]
    lines, overrides = said(idle)
    assert [line.startswith(f"{name} ") and piece in line for line in lines] == [True]
    assert said({**idle, **used})[0] == []
    assert name in overrides.values
    config = build({**RUN, **idle})
    if name in UNUSED:
        with pytest.raises(ConfigError, match=rf"--{name} has no effect: .*; leave it out"):
            refuse_unused(config, overrides)
    else:
        refuse_unused(config, overrides)
    recipe = said(idle, "config/x.py")
    refuse_unused(config, recipe[1])  # a recipe whose optimizer the command line changes is fine
    assert "(config/x.py)" in recipe[0][0]


def test_a_decay_that_never_begins_is_said_once():
    values = dict(schedule="wsd", lr_decay_iters=500, decay_fraction=0.3, max_iters=100)
    lines, _ = said(values)
    begins = "the decay would begin at step 350"
    assert lines == [f"lr_decay_iters 500: {begins}, and the run ends at 100."]
    lines, _ = said(dict(lr_decay_iters=5))
    assert "nothing is left to decay in" in lines[0]


def test_the_default_of_an_option_says_nothing():
    assert said({name: OPTIONS[name].default for name in UNUSED})[0] == []


def test_a_training_refuses_it_and_says_the_rest_before_the_first_step(train, capsys):
    with pytest.raises(ConfigError, match="--muon_momentum has no effect"):
        train(muon_momentum=0.8)
    train(warmup_iters=30, max_iters=2, quiet=False)
    out = capsys.readouterr().out
    line = "warmup_iters 30: the run ends after 2 steps, so learning_rate 0.001 is never reached."
    assert out.index(line) < out.index("step 1")
