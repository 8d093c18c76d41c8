"""Twenty steps of a very small model, to check that everything works.

Trains  0.1M parameters
On      shakespeare, or any dataset: --dataset NAME
Takes   seconds
Expect  a loss a little below that of an untrained model, ln(vocabulary); the text is noise
"""

dataset = "shakespeare"

n_layer = 2
n_head = 2
n_embd = 64
block_size = 32
dropout = 0.0

batch_size = 8
max_iters = 20
learning_rate = 3e-3
warmup_iters = 2
log_interval = 5
eval_interval = 10
