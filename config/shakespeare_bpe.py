"""A small GPT that writes plays in pieces of words: a byte-level BPE of 1,024 tokens.

Trains  1.0M parameters (Llama's shape with tied weights), exportable
On      python prepare.py shakespeare --tokenizer bpe --vocab_size 1024 --dataset shakespeare_bpe
Takes   about 5 minutes on 2 slow CPU cores, by the size of its steps; not yet measured to the end
Expect  fewer bits per byte than the 5-gram's 2.41; the loss is per token, so it is higher
"""

dataset = "shakespeare_bpe"

# model
n_layer = 4
n_head = 4
n_embd = 128
block_size = 128
qk_norm = True
dropout = 0.1  # the text has fewer tokens with a BPE, so it is read more often

# training
batch_size = 16
max_iters = 1000
optimizer = "muon"
learning_rate = 5e-3
schedule = "wsd"
decay_fraction = 1.0  # falls linearly from the end of the warm-up
warmup_iters = 20
min_lr = 0.0
