"""A small GPT that learns to add numbers of up to three digits, and is right on sums it never met.

Trains  0.3M parameters, on answers written last digit first (sample.py shows them as usual)
On      task:addition:digits=3, whose problems are made while training; a tenth of them is the test
Takes   about 2 minutes of one slow CPU core
Expect  99.9% of the answers to 1,000 unseen problems exactly right
"""

dataset = "task:addition:digits=3"

# model
n_layer = 3
n_head = 3
n_embd = 96
block_size = 12  # the longest problem: 123+456=975 and the end of text
qk_norm = True
tie_weights = False
init_projection = "zero"
dropout = 0.0

# training
batch_size = 256
max_iters = 500
optimizer = "muon"
learning_rate = 1e-2
weight_decay = 0.0
schedule = "wsd"
decay_fraction = 1.0
warmup_iters = 10
min_lr = 0.0

eval_interval = 100
