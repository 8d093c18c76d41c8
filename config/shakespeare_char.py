"""The plays, character by character."""

dataset = "shakespeare"
n_layer = 4
n_head = 4
n_embd = 128
block_size = 128
dropout = 0.0
qk_norm = True
tie_weights = False
init_projection = "zero"
batch_size = 32
max_iters = 2000
optimizer = "muon"
learning_rate = 1e-2
weight_decay = 0.1
schedule = "wsd"
decay_fraction = 1.0
min_lr = 0.0
warmup_iters = 10
