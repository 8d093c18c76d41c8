"""A small GPT that writes plays, character by character.

Trains  0.8M parameters (Qwen3's shape: RoPE, RMSNorm, SwiGLU, QK-norm), exportable
On      shakespeare (python prepare.py shakespeare)
Takes   about 5 minutes on 2 slow CPU cores; `--minutes 3` fits it into three
Expect  a validation loss of 1.50; 1.55 after three minutes (2.17, 2.24 bits per byte; 5-gram: 2.41)
"""

dataset = "shakespeare"

# model
n_layer = 4
n_head = 2  # four heads of 32 channels double the time of attention and learn no more
n_embd = 128
block_size = 256
qk_norm = True
tie_weights = False
init_projection = "zero"
dropout = 0.0  # less than two epochs: no need to regularise

# training
batch_size = 8
max_iters = 1000
optimizer = "muon"
muon_momentum = 0.9  # in so few steps older gradients matter less
learning_rate = 7e-3
weight_decay = 0.0
schedule = "wsd"
decay_fraction = 1.0  # falls linearly from the end of the warm-up
warmup_iters = 10
min_lr = 0.0
