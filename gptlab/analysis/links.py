"""Measure the links between the processes of a launch, and what they cost a training.

All processes call these functions. Between all of them an all-reduce is timed, small for its
latency and large for its bandwidth; between each two a message that goes there and back. Pairs that
share no process are measured at once, as in a training all links work at once.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from gptlab import hardware
from gptlab.planning.cluster import Cluster, traffic
from gptlab.planning.gpus import find_gpu
from gptlab.training.config import TrainConfig
from gptlab.training.measuring import measure
from gptlab.training.parallel import Parallel

LARGE = 16_000_000  # bytes of the message that a bandwidth is measured with
REPEATS = 20  # of a small message, and a quarter of it of a large one
STEP_SECONDS = 2.0  # for which steps are timed


@dataclass(frozen=True)
class Link:
    """Between two processes. latency: seconds of a message of 4 bytes, one way. bandwidth: bytes/s,
    one way."""

    processes: tuple[int, int]
    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Links:
    """What was measured, alike in all processes.

    hosts: of each process. latency: seconds of an all-reduce of 4 bytes between all. bandwidth:
    bytes of a large tensor that it sums in a second; with N processes each link carries
    2 (N - 1) / N times as many.
    """

    hosts: tuple[str, ...]
    latency: float
    bandwidth: float
    links: tuple[Link, ...]

    @property
    def slowest(self) -> Link:
        """The link of the lowest bandwidth."""
        return min(self.links, key=lambda link: link.bandwidth)

    @property
    def slowest_process(self) -> int:
        """The process whose links have the lowest bandwidth, by their median."""
        return min(range(len(self.hosts)), key=self.bandwidth_of)

    @property
    def median_bandwidth(self) -> float:
        """Bytes/s of the link in the middle."""
        return statistics.median(link.bandwidth for link in self.links)

    def bandwidth_of(self, process: int) -> float:
        """The median of the bandwidths of a process's links."""
        return statistics.median(link.bandwidth for link in self.links if process in link.processes)


@dataclass(frozen=True)
class StepShare:
    """A step of a recipe on these processes, in seconds.

    compute: of each process. communication: what it would take if nothing else happened meanwhile.
    sent: bytes that each process sends.
    """

    compute: tuple[float, ...]
    communication: float
    sent: float

    @property
    def share(self) -> float:
        """Of communication in a step, where nothing of it overlaps with computing."""
        return self.communication / (self.communication + max(self.compute))


def measure_links(parallel: Parallel, size: int = LARGE) -> Links:
    """Time the links. size: bytes of the large messages."""
    device = parallel.device
    small, large = (torch.zeros(count, device=device) for count in (1, size // 4))
    latency = _timed(lambda: dist.all_reduce(small), device, REPEATS)
    seconds = _timed(lambda: dist.all_reduce(large), device, REPEATS // 4)
    found = []
    for pairs in rounds(parallel.world_size):
        for pair in pairs:
            if parallel.rank in pair:
                link = functools.partial(_there_and_back, pair=pair, rank=parallel.rank)
                there = _timed(functools.partial(link, small), device, REPEATS)
                back = _timed(functools.partial(link, large), device, REPEATS // 4)
                if parallel.rank == pair[0]:
                    found.append(Link(pair, there / 2, size / max(1e-9, (back - there) / 2)))
        parallel.any(False)  # all have done this round
    own = parallel.host, latency, max(1e-9, seconds - latency), found
    everyone = parallel.gather(lambda: own)
    return Links(
        hosts=tuple(host for host, *_ in everyone),
        latency=max(each for _, each, *_ in everyone),
        bandwidth=size / max(each for _, _, each, _ in everyone),
        links=tuple(link for *_, links in everyone for link in links),
    )


def _timed(work: Callable[[], None], device: str, repeats: int) -> float:
    """The median of the seconds that some work takes."""
    found = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        hardware.synchronize(device)
        found.append(time.perf_counter() - begin)
    return statistics.median(found[1:])  # the first connects


def _there_and_back(tensor: torch.Tensor, pair: tuple[int, int], rank: int) -> None:
    first, second = pair
    if rank == first:
        dist.send(tensor, second)
        dist.recv(tensor, second)
    else:
        dist.recv(tensor, first)
        dist.send(tensor, first)


def rounds(processes: int) -> Iterator[list[tuple[int, int]]]:
    """Each pair of processes once, in rounds of pairs that share none (round-robin)."""
    players = [*range(processes), *[-1] * (processes % 2)]
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        yield [(min(pair), max(pair)) for pair in pairs if -1 not in pair]
        players.insert(1, players.pop())


def step_share(config: TrainConfig, choice, links: Links, parallel: Parallel) -> StepShare:
    """What communication takes of a step of this recipe. All processes take steps at once.

    What a step sends is what the plan of a cluster says; the measured all-reduce gives its time,
    in which a gather or a scatter takes half.
    """
    processes = parallel.world_size
    # the data sheet's GPU gives nothing here: the number of processes and machines counts
    cluster = Cluster(find_gpu("h100"), processes, parallel.local_size, 1.0, 0.0)
    own = -(-config.sequences_per_step // processes)
    micro_batches = -(-own // config.batch.batch_size)
    sent = traffic(config, cluster, config.machine.parallelism, micro_batches)
    moved = sent.reduced + (sent.gathered + sent.scattered) / 2
    communication = moved / links.bandwidth + sent.calls * links.latency
    began = time.perf_counter()
    timed = functools.partial(measure, config, choice, processes, began, STEP_SECONDS)
    seconds = parallel.gather(lambda: timed().step)
    return StepShare(tuple(seconds), communication, sent.sent)
