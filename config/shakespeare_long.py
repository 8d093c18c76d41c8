"""The lowest loss on tiny Shakespeare: below the 1.4697 of nanoGPT with 10.7M parameters.

Trains  2.7M parameters (Qwen3's shape: RoPE, RMSNorm, SwiGLU, QK-norm), exportable
On      shakespeare (python prepare.py shakespeare)
Takes   about 45 minutes on 2 slow CPU cores that do nothing else
Expect  a validation loss of 1.436 (2.07 bits per byte; 5-gram: 2.41)
"""

dataset = "shakespeare"

# model
n_layer = 6
n_head = 3
n_embd = 192
block_size = 256
qk_norm = True
tie_weights = False
init_projection = "zero"
dropout = 0.15  # the text is read more than six times

# training
batch_size = 16
max_iters = 1612
optimizer = "muon"
muon_momentum = 0.9
learning_rate = 5e-3
weight_decay = 0.1
schedule = "wsd"
decay_fraction = 0.59
warmup_iters = 20
min_lr = 0.0

eval_interval = 250
