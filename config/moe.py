"""A mixture of experts beside its dense twin: eight experts, of which two work on each token.

Trains  2.4M parameters, a third of them active (Qwen3-MoE's shape), exportable
On      shakespeare (python prepare.py shakespeare)
Takes   about 6 minutes on 2 slow CPU cores, 1.3 times as long as its dense twin
Expect  a validation loss near that of its twin: 100 steps tell no difference (docs/experiments.md)
Beside  the twin of as many active parameters: gpt.py compare config/moe.py --set n_expert=0
"""

dataset = "shakespeare"

# model
n_layer = 4
n_head = 2
n_embd = 128
block_size = 256
qk_norm = True
tie_weights = False
init_projection = "zero"
dropout = 0.0
n_expert = 8
n_expert_active = 2  # each has half the hidden size of the twin's MLP

# training
batch_size = 16  # the optimizer's work, which grows with all experts, is shared by more tokens
max_iters = 500
optimizer = "muon"
muon_momentum = 0.9
learning_rate = 7e-3
weight_decay = 0.0
schedule = "wsd"
decay_fraction = 1.0
warmup_iters = 10
min_lr = 0.0
