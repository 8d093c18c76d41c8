"""A mixture of experts on many processes is that of one: DDP, FSDP, HSDP, AdamW and Muon."""

import torch
from checks_engine import assert_like_one_process, losses_and_norms, prepared, together

from gptlab.training.evaluation import use_of_experts
from gptlab.training.parallel import Parallel

EXPERTS = dict(n_expert=5, n_expert_active=2, expert_size=12, expert_balance=0.1)


def check_experts_have_the_losses_and_norms_of_one_process(world):
    """Sequences without a target are among them, of which the balance must know nothing."""
    assert_like_one_process(world, "ddp", steps=5, **EXPERTS)
    found = assert_like_one_process(world, "fsdp", steps=8, optimizer="muon", **EXPERTS)
    one = dict(batch_size=1, gradient_accumulation_steps=1)
    assert_like_one_process(world, "fsdp", steps=3, **one, **EXPERTS)
    if world.size == 4:
        checkpointing = dict(gradient_checkpointing=True, **EXPERTS)
        assert_like_one_process(world, "hsdp", steps=4, **checkpointing)
    return found


def check_the_tokens_of_experts_are_counted_over_all_processes(world):
    found = []
    for parallel in (together(world, "fsdp"), Parallel.alone("cpu")):
        setup, state = prepared(parallel, **EXPERTS)
        losses_and_norms(setup, state, 1)  # of training, whose tokens do not count
        state.model.eval()
        text = torch.randint(67, (4, 16), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            state.model(text.chunk(parallel.world_size)[parallel.rank])
        found.append(use_of_experts(setup, state))
    assert found[0] == found[1]
    assert torch.tensor(found[0]["load"]).shape == (3, 5)
    assert use_of_experts(setup, state) is None  # they were taken
