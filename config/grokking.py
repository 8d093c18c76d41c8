"""Grokking: sums modulo 59, learned by heart first and understood much later (Power et al. 2022).

Trains  0.06M parameters, one layer, on half of all 3,481 problems, over and over
On      task:modular:modulus=59:share=0.5, each number one token
Takes   about a minute of one slow CPU core
Expect  99% of the problems of the training right after 200 steps, and of the unseen ones 1% then,
        50% after 1,000 steps and 99% after 3,000
"""

dataset = "task:modular:modulus=59:share=0.5"

# model
n_layer = 1
n_head = 4
n_embd = 64
block_size = 5  # 12+50=3 and the end of text
tie_weights = False
dropout = 0.0

# training
batch_size = 128
max_iters = 3000
optimizer = "muon"
beta2 = 0.98
learning_rate = 5e-3
weight_decay = 0.1  # more of it, and the model understands sooner
schedule = "wsd"
decay_fraction = 0.1
warmup_iters = 10

eval_interval = 50
