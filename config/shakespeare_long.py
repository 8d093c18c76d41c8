"""The lowest loss on tiny Shakespeare: below the 1.4697 of nanoGPT with 10.7M parameters.

Trains  2.7M parameters (Qwen3's shape: RoPE, RMSNorm, SwiGLU, QK-norm), exportable
On      shakespeare (python prepare.py shakespeare)
Takes   about an hour on 2 slow CPU cores, by the size of its steps
Expect  a validation loss of 1.40 (2.02 bits per byte; 5-gram: 2.41)
"""

dataset = "shakespeare"

# model
n_layer = 6
n_head = 3
n_embd = 192
block_size = 512
qk_norm = True
tie_weights = False
init_projection = "zero"
dropout = 0.15  # the text is read ten times

# training
batch_size = 8
max_iters = 2450
optimizer = "muon"
muon_momentum = 0.9
learning_rate = 5e-3
weight_decay = 1.0
schedule = "wsd"
decay_fraction = 1.0  # falls linearly from the end of the warm-up
warmup_iters = 20
min_lr = 0.0

eval_interval = 350
