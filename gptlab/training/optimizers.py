"""AdamW and Muon behind one small interface: rate, step, gradients off, state."""

import math

import torch
from torch.optim.adamw import adamw

from gptlab.errors import CheckpointError
from gptlab.training.config import TrainConfig

# Newton-Schulz: a quintic whose iteration pulls all singular values towards 1 (Jordan et al. 2024)
NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NS_STEPS = 4
GRAM_RATIO = 1.5  # of the sides, from which multiplying the small side alone pays


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype, steps: int = NS_STEPS):
    """The nearest (semi-)orthogonal matrices, roughly: [n, A, B] -> [n, A, B] in `dtype`.

    Singular values end between about 0.7 and 1.2, by `steps` Newton-Schulz iterations on the
    smaller side. dtype: the precision in which this device multiplies fast.
    """
    a, b, c = NS_COEFFICIENTS
    wide = matrices.size(1) <= matrices.size(2)
    x = matrices if wide else matrices.mT  # [n, small, large]
    # to unit norm first: small gradients would underflow in float16
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    if dtype == torch.float32 and x.size(2) > GRAM_RATIO * x.size(1):
        x = _gram_polynomial(x @ x.mT, steps) @ x
        return x if wide else x.mT
    for _ in range(steps):
        gram = x @ x.mT  # [n, small, small]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def _gram_polynomial(gram: torch.Tensor, steps: int) -> torch.Tensor:
    """P [n, S, S] with which P @ x is what `steps` iterations make of x, from gram = x @ x.mT.

    All iterates are polynomials of the first one's Gram matrix times x, so only small matrices
    are multiplied: a third less work where x is 2.7 times as long as high. Rounding errors add up
    more, so this is for float32.
    """
    a, b, c = NS_COEFFICIENTS
    product = None
    for step in range(steps):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if step < steps - 1:
            gram = factor @ gram @ factor
    return product


# Not subclasses of torch's Optimizer, which imports torch's compiler before the first step: three
# seconds of a small machine. A GradScaler asks for no more than param_groups either.


class AdamW:
    """AdamW (Loshchilov & Hutter 2019), by torch's fused kernels."""

    def __init__(self, param_groups: list[dict], lr: float, betas: tuple[float, float]):
        self.param_groups = [{**group, "lr": lr} for group in param_groups]
        self.betas = betas
        self.state = {}

    @torch.no_grad()
    def step(self, found_inf: torch.Tensor | None = None) -> None:
        """Update every parameter that has a gradient, unless found_inf is 1.0."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            states = [self._state(parameter) for parameter in parameters]
            adamw(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                found_inf=found_inf,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=1e-8,
                maximize=False,
            )

    def _state(self, parameter) -> dict:
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        return self.state[parameter]


class Muon:
    """Momentum whose matrices are orthogonalised before they are applied (Jordan et al. 2024).

    Equal shapes are stacked and orthogonalised together. The update is scaled to the root mean
    square of an AdamW update, 0.2 sqrt(max(A, B)) (Liu et al. 2025), so both take the same rate.
    """

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0, ns_dtype=torch.float32):
        self.param_groups = [{"params": list(params), "lr": lr, "weight_decay": weight_decay}]
        self.momentum = momentum
        self.ns_dtype = ns_dtype
        self.state = {}

    @torch.no_grad()
    def step(self, found_inf: torch.Tensor | None = None) -> None:
        """Update every matrix that has a gradient, unless found_inf is 1.0."""
        for group in self.param_groups:
            by_shape = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group, found_inf)

    def _update(self, parameters, group, found_inf) -> None:
        for parameter in parameters:
            if parameter not in self.state:
                self.state[parameter] = {"momentum": torch.zeros_like(parameter)}
        buffers = [self.state[parameter]["momentum"] for parameter in parameters]
        grads = [parameter.grad for parameter in parameters]
        kept = 1.0
        if found_inf is not None:  # without asking the device: zero rate, old momentum
            skip = found_inf > 0
            grads = [torch.where(skip, buf, grad) for buf, grad in zip(buffers, grads, strict=True)]
            kept = torch.where(skip, 0.0, 1.0)
        momentum, rate = self.momentum, group["lr"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        # Nesterov: look ahead by one more step of the mean
        ahead = torch.stack(torch._foreach_lerp(grads, buffers, momentum))  # [n, A, B]
        update = orthogonalize(ahead, self.ns_dtype).to(parameters[0].dtype)
        scale = 0.2 * math.sqrt(max(parameters[0].shape)) * rate * kept
        torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"] * kept)
        torch._foreach_sub_(parameters, list((update * scale).unbind(0)))


class Optimizers:
    """The optimizers of a run as one. Weight decay acts on matrices only, embeddings included."""

    def __init__(self, model: torch.nn.Module, config: TrainConfig, ns_dtype: torch.dtype):
        self.names = {id(p): name for name, p in model.named_parameters()}
        options = config.optimizer
        hidden, matrices, vectors = [], [], []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.dim() < 2:
                vectors.append(parameter)
            elif options.optimizer == "muon" and name.startswith("blocks."):
                hidden.append(parameter)
            else:
                matrices.append(parameter)
        groups = [
            {"params": matrices, "weight_decay": options.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        rate = options.learning_rate
        betas = (options.beta1, options.beta2)
        groups = [group for group in groups if group["params"]]
        self.optimizers = [AdamW(groups, rate, betas)] if groups else []
        if hidden:
            self.optimizers.append(
                Muon(hidden, rate, options.muon_momentum, options.weight_decay, ns_dtype)
            )

    def set_learning_rate(self, rate: float) -> None:
        """The rate of the next step, for all groups."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def step(self, found_inf: torch.Tensor) -> None:
        """Update the weights, unless found_inf (a float tensor, on the device) is above 0."""
        for optimizer in self.optimizers:
            optimizer.step(found_inf)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def state_dict(self) -> dict:
        """{parameter name: {state name: tensor}}: independent of the order of groups."""
        return {
            self.names[id(parameter)]: dict(state)
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
        }

    @torch.no_grad()
    def load_state_dict(self, saved: dict) -> None:
        """Take the state of `state_dict`; CheckpointError when it belongs to another optimizer."""
        for optimizer in self.optimizers:
            wanted = (
                {"momentum"} if isinstance(optimizer, Muon) else {"step", "exp_avg", "exp_avg_sq"}
            )
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    state = saved.get(self.names[id(parameter)])
                    if state is None or not wanted <= set(state):
                        raise CheckpointError(
                            "The checkpoint's optimizer state belongs to another optimizer: resume "
                            "with the optimizer that the run began with."
                        )
                    optimizer.state[parameter] = {
                        name: value.to(parameter.device) for name, value in state.items()
                    }


class Ema:
    """An exponential average of the weights (Polyak & Juditsky 1992), kept in float32.

    The average is corrected for its start: after t steps it weighs them with 1 - decay^t.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.weights = {n: p.detach().clone() for n, p in _trained(model)}

    @torch.no_grad()
    def update(self, model: torch.nn.Module, step: int) -> None:
        """Take in the weights after step number `step` (from 0)."""
        # the weight of the newest: 1 at the first step, then falling to 1 - decay
        newest = (1 - self.decay) / (1 - self.decay ** (step + 1))
        weights = [parameter for _, parameter in _trained(model)]
        torch._foreach_lerp_(list(self.weights.values()), weights, newest)

    @torch.no_grad()
    def swap(self, model: torch.nn.Module) -> None:
        """Exchange the model's weights and the averaged ones; a second call undoes it."""
        for name, parameter in _trained(model):
            kept = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name].copy_(kept)


def _trained(model: torch.nn.Module):
    """(name, parameter) of those that are not frozen."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
