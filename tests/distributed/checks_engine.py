"""The engine: a run on many processes is the run of one.

What one process does alone is the oracle of each check. Training is without files: the state, the
step and the data of a run, on random tokens.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from gptlab.data.batches import Batches, Sequences
from gptlab.model.shards import local, whole
from gptlab.model.transformer import GPT
from gptlab.training.building import new_state, return_freed_memory
from gptlab.training.config import build
from gptlab.training.loop import train_step
from gptlab.training.pace import Pace
from gptlab.training.parallel import Parallel, compile_blocks
from gptlab.training.resolving import Resolved
from gptlab.training.setup import Setup
from gptlab.training.sharding import make_mesh, trained_model

SIZES = dict(
    vocab_size=67, block_size=16, n_layer=3, n_head=4, n_kv_head=2, n_embd=24, bias=True,
    position_encoding="learned", qk_norm=True, dropout=0.2, device="cpu", dtype="float32",
    batch_size=3, gradient_accumulation_steps=3, max_iters=50, warmup_iters=2, lr_decay_iters=50,
    min_lr=1e-4, learning_rate=1e-2, grad_clip=0.5, compile_model=False, seed=5,
)  # fmt: skip


def together(world, parallelism):
    """The processes of this launch, as a training has them."""
    parallel = Parallel()
    parallel._control = dist.group.WORLD
    make_mesh(parallelism, parallel)
    return parallel


def prepared(parallel, filled=None, **settings):
    """(setup, state) of a training on random tokens, of which a third of the targets count."""
    config = build(SIZES | settings)
    random = np.random.default_rng(0)
    tokens = random.integers(config.model.vocab_size, size=3000)
    batches = Batches(
        Sequences(
            tokens,
            random.random(3000) < 1 / 3,
            vocab_size=config.model.vocab_size,
            block_size=config.model.block_size,
            seed=config.run.seed,
        ),
        batch_size=config.batch.batch_size,
        sequences_per_step=config.sequences_per_step,
        rank=parallel.rank,
        world_size=parallel.world_size,
    )
    model = trained_model(config, parallel, filled)
    return Setup(Resolved(config, {}), parallel, batches), new_state(model, config, False)


def losses_and_norms(setup, state, steps=12):
    found = [train_step(setup, state) for _ in range(steps)]
    return torch.tensor([[float(x.loss), float(x.grad_norm)] for x in found])


def assert_like_one_process(world, parallelism, steps=12, **settings):
    """Losses and gradient norms of the first steps, to 1e-5 of them, and then the weights."""
    alone = prepared(Parallel.alone("cpu"), **settings)
    shared = prepared(together(world, parallelism), **settings)
    assert shared[0].parallel.is_sharded == (parallelism != "ddp")
    expected = losses_and_norms(*alone, steps)
    found = losses_and_norms(*shared, steps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    pairs = zip(alone[1].model.named_parameters(), shared[1].model.named_parameters(), strict=True)
    for (name, weight), (its_name, part) in pairs:
        assert name == its_name
        torch.testing.assert_close(whole(part).detach(), weight.detach(), rtol=1e-3, atol=1e-5)
    apart = ((found - expected).abs() / expected).max().item()
    return {"apart": apart, "norms above the limit": int((expected[:, 1] > 0.5).sum())}


def check_ddp_has_the_losses_and_norms_of_one_process(world):
    assert_like_one_process(world, "ddp")
    return assert_like_one_process(world, "ddp", optimizer="muon")


def check_fsdp_has_the_losses_and_norms_of_one_process(world):
    assert_like_one_process(world, "fsdp")
    return assert_like_one_process(world, "fsdp", optimizer="muon", ema_decay=0.9)


def check_hsdp_has_the_losses_and_norms_of_one_process(world):
    assert_like_one_process(world, "hsdp")
    return assert_like_one_process(world, "hsdp", optimizer="muon", ema_decay=0.9)


check_hsdp_has_the_losses_and_norms_of_one_process.sizes = (4,)


def check_fifty_steps_are_those_of_one_process(world):
    """Dropout, accumulation, clipping, masked targets, an average: SIZES and `prepared`."""
    kinds = ("ddp", "fsdp", "hsdp") if world.size == 4 else ("ddp", "fsdp")
    found = {}
    for kind in kinds:
        for optimizer in ("adamw", "muon"):
            for checkpointing in (False, True):
                settings = dict(optimizer=optimizer, gradient_checkpointing=checkpointing)
                its = assert_like_one_process(world, kind, steps=50, ema_decay=0.9, **settings)
                assert its["norms above the limit"] > 5
                found[f"{kind} {optimizer} {checkpointing}"] = its["apart"]
    return found


check_fifty_steps_are_those_of_one_process.slow = True
check_fifty_steps_are_those_of_one_process.seconds = 300


def check_compiled_blocks_give_the_losses_of_one_eager_process(world):
    """Compiled after they are shared, as a training does; with checkpoints inside, and dropout."""
    settings = dict(gradient_checkpointing=True, optimizer="muon")
    expected = losses_and_norms(*prepared(Parallel.alone("cpu"), **settings), 20)
    for kind in ("ddp", "fsdp"):
        setup, state = prepared(together(world, kind), **settings)
        assert compile_blocks(state.model, lambda: None) == ""
        found = losses_and_norms(setup, state, 20)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


check_compiled_blocks_give_the_losses_of_one_eager_process.slow = True
check_compiled_blocks_give_the_losses_of_one_eager_process.sizes = (2,)
check_compiled_blocks_give_the_losses_of_one_eager_process.seconds = 300


def check_dropout_is_that_of_one_process(world):
    assert_like_one_process(world, "ddp", steps=6, dropout=0.3)
    checkpointing = dict(dropout=0.3, gradient_checkpointing=True)
    return assert_like_one_process(world, "fsdp", steps=6, **checkpointing)


def check_processes_without_a_sequence_take_part(world):
    for parallelism in ("ddp", "fsdp"):
        one = dict(batch_size=1, gradient_accumulation_steps=1)
        assert_like_one_process(world, parallelism, steps=4, **one)


def check_initial_weights_are_those_of_one_process_to_the_bit(world):
    torch.manual_seed(SIZES["seed"])
    expected = GPT(build(SIZES).model).state_dict()
    _, state = prepared(together(world, "fsdp"))
    for name, part in state.model.state_dict().items():
        assert torch.equal(whole(part), expected[name]), name
        assert part.to_local().numel() <= -(-len(part) // world.size) * part[0].numel()


def records(world, name):
    """{(step, field): value} of a run's metrics, without times."""
    times = ("time", "tokens_per_second", "mfu", "data_share", "processes")
    _, *lines = (world.folder / name / "metrics.jsonl").read_text().splitlines()  # the version
    return {
        (r["step"], field): value
        for r in map(json.loads, lines)
        for field, value in r.items()
        if field not in times
    }


def assert_alike(expected, found):
    """Equal records, of figures to 1e-5 of them."""
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        if key[1] in ("sample", "sequences_seen"):
            assert found[key] == value, key
        elif isinstance(value, float):
            assert abs(found[key] - value) <= 1e-5 * abs(value), key


def check_a_sharded_run_writes_the_records_of_one_process_and_goes_on_as_one(world):
    options = dict(
        gradient_accumulation_steps=3, ema_decay=0.9, sample_interval=6, lens_interval=6,
        optimizer="muon",
    )  # fmt: skip
    world.train("one", alone=True, **options)
    world.train("shared", parallelism="fsdp", **options)
    world.train("shared", resume=True, max_iters=18, parallelism="ddp")
    world.train("shared", alone=True, resume=True, max_iters=24)
    world.train("shared", resume=True, max_iters=30, parallelism="fsdp")
    for max_iters in (18, 24, 30):
        world.train("one", alone=True, resume=True, max_iters=max_iters)
    found = records(world, "shared")
    assert_alike(records(world, "one"), found)
    assert {"sample", "inside", "val_loss", "ema_val_loss"} <= {name for _, name in found}


check_a_sharded_run_writes_the_records_of_one_process_and_goes_on_as_one.sizes = (2,)


def check_a_sharded_run_begins_from_the_model_of_another_run(world):
    world.train("start", alone=True, max_iters=4)
    begun = dict(init_from=str(world.folder / "start"), max_iters=6)
    world.train("one", alone=True, **begun)
    world.train("shared", parallelism="fsdp", **begun)
    assert_alike(records(world, "one"), records(world, "shared"))
    sharded = dict(begun, init_from=str(world.folder / "shared" / "ckpt"))
    world.train("again", parallelism="fsdp", **sharded)
    world.train("alone again", alone=True, **sharded)
    assert_alike(records(world, "alone again"), records(world, "again"))


check_a_sharded_run_begins_from_the_model_of_another_run.sizes = (2,)


def check_the_records_say_which_process_is_the_slowest(world):
    pace, last = Pace(together(world, "ddp"), 600), world.size - 1
    pace.begin()
    begin = time.perf_counter()
    with pace.apart():
        work(0.2)  # which belongs to no step
    if world.rank == last:
        work(0.3)
    dist.barrier()  # the others wait
    found = pace.record(2, time.perf_counter() - begin, data_share=world.rank / 10)["processes"]
    assert found["slowest"] == last
    assert found["busy"][last] > 2 * max(found["busy"][:last])
    assert found["tokens_per_second"][last] < min(found["tokens_per_second"][:last]) / 2
    assert found["data_share"] == [rank / 10 for rank in range(world.size)]
    assert all(5e7 < held < 1e11 for held in found["memory"])
    return found


def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def check_the_peak_memory_of_a_process_falls_with_their_number(world):
    """Weights, gradients and AdamW's state of 28M parameters, 450 MB in a single process."""
    large = dict(
        n_layer=16, n_head=4, n_kv_head=4, n_embd=384, batch_size=1, dropout=0.0,
        gradient_accumulation_steps=2 * world.size, max_iters=2, lr_decay_iters=2,
    )  # fmt: skip

    def grown(parallel):
        return_freed_memory()  # as a sharded training does
        losses_and_norms(*prepared(parallel), 1)  # loads the code
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before = in_status("VmRSS")
        setup, state = prepared(parallel, **large)
        losses_and_norms(setup, state, 2)
        kept = {
            p: s for optimizer in state.optimizers.optimizers for p, s in optimizer.state.items()
        }
        held = sum(
            local(each).nbytes
            for parameter in state.model.parameters()
            for each in (parameter, *kept[parameter].values())
        )
        return in_status("VmHWM") - before, held

    part, held = grown(together(world, "fsdp"))
    whole, its = grown(Parallel.alone("cpu")) if world.rank == 0 else (0, 0)
    found = torch.tensor([part, held, whole, its])
    each = [torch.empty_like(found) for _ in range(world.size)]
    dist.all_gather(each, found)
    whole, its = each[0][2:].tolist()
    for part, held, *_ in torch.stack(each).tolist():
        assert held <= 1.01 * its / world.size
        # two blocks and the embeddings are whole meanwhile, with their gradients
        assert part <= whole / world.size + 80e6, (part, whole)
    return {"peak": [int(one[0]) for one in each], "alone": whole, "state": [held, its]}


check_the_peak_memory_of_a_process_falls_with_their_number.slow = True


def in_status(name):
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
