"""One process or many: ranks, agreements, sums, and compiled blocks."""

import contextlib
import copy
import datetime
import json
import logging
import os
import socket
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from gptlab.errors import GPTLabError, HardwareError
from gptlab.files import explain_error
from gptlab.training.watch import Watch, attempt_of

logger = logging.getLogger(__name__)

INIT_TIMEOUT = datetime.timedelta(minutes=3)  # that processes may take to come together
COLLECTIVE_SECONDS = 600.0  # of an option of the training
WAIT_TIMEOUT = datetime.timedelta(hours=12)  # for the first process, which evaluates and measures


def choose_backend(device: str, windows: bool = os.name == "nt") -> str:
    """The communication library for a device: NCCL for CUDA and ROCm, XCCL for Intel, else gloo."""
    if device.startswith("cuda") and not windows:
        return "nccl"
    return "xccl" if device.startswith("xpu") else "gloo"


class Parallel:
    """This process among those that train the model together; without torchrun it is alone."""

    def __init__(self):
        environment = os.environ
        self.world_size = int(environment.get("WORLD_SIZE", 1))
        self.rank = int(environment.get("RANK", 0))
        self.local_rank = int(environment.get("LOCAL_RANK", 0))
        self.local_size = int(environment.get("LOCAL_WORLD_SIZE", 1))
        self.is_first = self.rank == 0
        self.device = "cpu"
        self.mesh = None  # of a sharded model (sharding.py)
        self.replica = None  # the model as DDP calls it, its gradients summed
        self._control = None
        self.watch = Watch()
        self.host = socket.gethostname()
        self.earlier = 0.0  # seconds that this launch has trained before torchrun restarted it
        self._store = self._launch_store = None
        self._exchanges = 0
        self._lifetime = f"{self.host} {os.getpid()}"
        self._collective_timeout = datetime.timedelta(seconds=COLLECTIVE_SECONDS)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds a part of each parameter only."""
        return self.mesh is not None

    @property
    def shards(self) -> int:
        """The processes among which the model is divided; 1: each has the whole."""
        return self.mesh.size(self.mesh.ndim - 1) if self.mesh is not None else 1

    @classmethod
    def alone(cls, device: str) -> "Parallel":
        """A process that works alone, even under torchrun."""
        parallel = cls()
        parallel.world_size, parallel.rank, parallel.local_rank, parallel.local_size = 1, 0, 0, 1
        parallel.is_first, parallel.device = True, device
        return parallel

    def own_device(self, device: str) -> str:
        """The device of this rank when all ranks request `device`: each gets its own."""
        if self.world_size == 1 or device.partition(":")[0] not in ("auto", "cuda", "xpu", "gpu"):
            return device
        if device == "auto" and not (torch.cuda.is_available() or torch.xpu.is_available()):
            return "cpu"
        kind = "xpu" if device.startswith("xpu") or not torch.cuda.is_available() else "cuda"
        return f"{kind}:{self.local_rank}"

    def connect(self, collective_timeout: float = COLLECTIVE_SECONDS) -> None:
        """Meet the other processes and watch them; HardwareError where they do not come.

        collective_timeout: seconds that a process may leave the others waiting.
        """
        if self.world_size == 1 or self._store is not None:
            return
        self._collective_timeout = datetime.timedelta(seconds=collective_timeout)
        try:
            store, *_ = next(dist.rendezvous("env://", timeout=INIT_TIMEOUT))
            attempt = attempt_of(store, self.rank, self.world_size)
            watched = dist.PrefixStore(attempt, store.clone())  # of the watch's thread
            self.watch.start(self.rank, self.world_size, watched, store.host, collective_timeout)
        except (RuntimeError, ValueError, TimeoutError) as error:
            raise self._unreachable("the launcher's store", error) from error
        self._store, self._launch_store = dist.PrefixStore(attempt, store), store

    def begin(self, device: str) -> None:
        """Form the groups that compute together; HardwareError when that fails."""
        self.device = device
        if self.world_size == 1:
            return
        self.connect()
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        backend = choose_backend(device)
        if device == "cpu":  # torchrun gives each process one thread
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
            cores = cores or os.cpu_count() or 1
            torch.set_num_threads(max(1, cores // self.local_size))
        try:
            dist.init_process_group(
                backend,
                store=self._store,
                rank=self.rank,
                world_size=self.world_size,
                timeout=self._collective_timeout,
            )
        except (RuntimeError, ValueError) as error:
            raise self._unreachable(backend, error) from error
        # processes agree over the CPU, so that they never wait for a GPU
        self._control = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)

    def _unreachable(self, how: str, error: Exception) -> HardwareError:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        return HardwareError(
            f"Process {self.rank} of {self.world_size} could not reach the others at {address} "
            f"with {how} ({str(error).splitlines()[0]}): start all of them with the same "
            "torchrun command and check that the address can be reached."
        )

    def end(self) -> None:
        """Leave the group, so that no process warns about it."""
        self.watch.stop()
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def together(self):
        """Around work of all processes: one that fails alone ends all, and all leave at the end."""
        try:
            yield
        except BaseException as error:
            self.watch.fail(error)
            raise
        finally:
            self.end()

    def each(self, value) -> list:
        """The values of all processes, by rank, before there are groups. value: as JSON has it.

        All processes call it equally often.
        """
        if self.world_size == 1:
            return [value]
        self._exchanges += 1
        keys = [f"each/{self._exchanges}/{rank}" for rank in range(self.world_size)]
        self._store.set(keys[self.rank], json.dumps(value))
        self._store.wait(keys, WAIT_TIMEOUT)
        return [json.loads(found) for found in self._store.multi_get(keys)]

    # The launch, which outlives the processes that torchrun restarts ------------------------------

    def note_begun(self, folder: Path, step: int) -> None:
        """Of the first process: note for processes that torchrun may start after these that the
        run in a folder has begun."""
        if self._launch_store is not None:
            begun = {"step": step, "time": time.time() - self.earlier, "by": self._lifetime}
            self._launch_store.set(f"begun/{folder.resolve()}", json.dumps(begun))

    def step_begun(self, folder: Path) -> int | None:
        """The step at which the run in a folder began, if this launch began it with processes
        before these; else None. All call it."""
        key, begun = f"begun/{folder.resolve()}", None
        if self.is_first and self._launch_store is not None and self._launch_store.check([key]):
            begun = json.loads(self._launch_store.get(key))
        begun = self.each(begun)[0]
        if begun is None or begun["by"] == self.each(self._lifetime)[0]:
            return None
        self.earlier = time.time() - begun["time"]
        return begun["step"]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether any process raises it; all must call this at the same point."""
        if self.world_size == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int64)
        self.watch.moved()
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._control)
        self.watch.moved()
        return tuple(map(bool, votes.tolist()))

    def sum(self, values: list[torch.Tensor]) -> torch.Tensor:
        """The sum of scalars, in float32, over all processes; a process may have none."""
        total = torch.zeros((), device=self.device)
        for value in values:
            total += value
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def merge(self, values: np.ndarray) -> np.ndarray:
        """Combine the arrays of all processes, each zero outside that process's own part."""
        if self.world_size == 1:
            return values
        whole = torch.from_numpy(values.copy())
        dist.all_reduce(whole, group=self._control)
        return whole.numpy()

    def from_first(self, make):
        """The result of `make()` on the first process, for every process; its errors too.

        The other processes wait for it, for hours if necessary.
        """
        if self.world_size == 1:
            return make()
        answer = [None, None]
        if self.is_first:
            try:
                with self.watch.paused():
                    answer[0] = make()
            except Exception as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0, group=self._control)
        if answer[1] is not None:
            raise self.watch.shared(answer[1])
        return answer[0]

    @property
    def control(self):
        """The group in which processes agree over the CPU; None for one process."""
        return self._control

    def with_own_group(self) -> "Parallel":
        """The same processes, for what another thread of each agrees on; all must call it."""
        other = copy.copy(self)
        other.watch = Watch()  # the training's is of its own thread
        if self.world_size > 1:
            other._control = dist.new_group(backend="gloo", timeout=WAIT_TIMEOUT)
        return other

    def gather(self, make) -> list:
        """What `make()` finds on each process, for every process; the first error, for all.

        An error that only some of them have names its process.
        """
        answer = [None, None, self.host]
        try:
            with self.watch.paused():
                answer[0] = make()
        except Exception as error:
            answer[1] = error
        answers = [answer]
        if self.world_size > 1:
            answers = [None] * self.world_size
            dist.all_gather_object(answers, answer, group=self._control)
        failed = [rank for rank, (_, error, _) in enumerate(answers) if error is not None]
        if failed:
            _, error, host = answers[failed[0]]
            if len(failed) < len(answers) and isinstance(error, (GPTLabError, OSError)):
                error = explain_error(error)
                error.problem = f"Process {failed[0]} on {host}: {error.problem}"
            raise self.watch.shared(error)
        return [found for found, *_ in answers]

    def with_model(self, make):
        """What `make()` finds in the model: the first process's, or each one's where it is sharded.

        A sharded model computes only when all processes call it.
        """
        return make() if self.is_sharded else self.from_first(make)

    @contextlib.contextmanager
    def micro_batch(self, model: torch.nn.Module, is_last: bool):
        """Around a forward pass: what to call for it.

        The backward pass of a step's last micro-batch sums the gradients of all processes. Those
        of a sharded model are summed after each one, or every process would hold them whole.
        """
        self.watch.moved()
        if self.is_sharded:
            model.set_requires_all_reduce(is_last)  # between the groups of hsdp
            yield model
        elif self.replica is None:
            yield model
        else:
            with contextlib.nullcontext() if is_last else self.replica.no_sync():
                yield self.replica


def fail_before_training(error: Exception) -> None:
    """Let the other processes know of an error before `train`: a recipe that one machine has not.

    Returns where all of them have one.
    """
    parallel = Parallel()
    with parallel.together():
        with contextlib.suppress(HardwareError):
            parallel.connect()
        parallel.watch.fail(error)


def compile_blocks(model: torch.nn.Module, try_step) -> str:
    """Compile the blocks in place and run `try_step()`; returns "", or why that failed.

    Block by block, because equal blocks share one compilation. A failure leaves all blocks eager.
    """
    try:
        for block in model.blocks:
            block.compile()
        try_step()
    except Exception as error:  # compilers raise errors of many kinds; training works without
        for block in model.blocks:
            block._compiled_call_impl = None
        lines = [line for line in str(error).splitlines() if line.strip()]
        return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")
    return ""
