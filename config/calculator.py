"""A calculator that writes its steps: + - * / of numbers of up to two digits.

Trains  0.3M parameters on answers with the steps of written arithmetic before the result
On      task:calculator:steps=yes, whose problems are made while training; a tenth is the test
Takes   about 4 minutes of one slow CPU core
Expect  79% of the answers to unseen problems exactly right, each with all of its steps; 90% after
        --resume --max_iters 2000, 4 minutes more; without steps (--dataset task:calculator), 74%
"""

dataset = "task:calculator:steps=yes"

# model
n_layer = 3
n_head = 4
n_embd = 96
block_size = 159  # two of the longest problems, or about five
qk_norm = True
tie_weights = False
init_projection = "zero"
dropout = 0.0

# training
batch_size = 16
max_iters = 1000
optimizer = "muon"
learning_rate = 1e-2
weight_decay = 0.0
schedule = "wsd"
decay_fraction = 1.0
warmup_iters = 10
min_lr = 0.0
