"""The shortest way to nanoGPT's loss on tiny Shakespeare (1.886 on the whole validation split).

Trains  0.8M parameters (Qwen3's shape: RoPE, RMSNorm, SwiGLU, QK-norm), exportable
On      shakespeare (python prepare.py shakespeare)
Takes   about 32 s on 2 slow CPU cores, start-up included; nanoGPT's documented CPU run took 158 s
Expect  a validation loss of 1.86 (nanoGPT: 1.90); with --max_iters 1500 below 1.55
"""

dataset = "shakespeare"

# model
n_layer = 4
n_head = 2  # four heads of 32 channels double the time of attention and learn no more
n_embd = 128
block_size = 64
qk_norm = True
tie_weights = False
init_projection = "zero"
dropout = 0.0

# training
batch_size = 16
max_iters = 190
optimizer = "muon"
muon_momentum = 0.9  # in so few steps older gradients matter less
learning_rate = 1e-2
weight_decay = 0.0
schedule = "wsd"
decay_fraction = 1.0  # falls linearly from the end of the warm-up
warmup_iters = 10
min_lr = 0.0

eval_interval = 190  # one evaluation at the end: each costs as much as several steps
eval_tokens = 20_000
