"""Your own small text: a diary, a chat log, the poems of a friend (20 KB to a few MB).

Trains  a model whose size follows from the text, about one parameter per token
On      python prepare.py YOUR_TEXT.txt --dataset own_text
        (or another name, with --dataset NAME here)
Takes   minutes on a laptop; it stops by itself
Expect  a validation loss below the 5-gram baseline for 100 KB of text and more: the first 200 KB
        of tiny Shakespeare reached 2.25 bits per byte after 2,110 steps, the 5-gram has 2.46

A small text is read many times over. At first the model learns how the text works, and the
validation loss falls. Then it begins to memorise the text, and the validation loss rises although
the training loss still falls. The weights at the turn are the best. Dropout delays the turn, the
run stops after three evaluations without a new lowest loss, and best.pt keeps the weights from
before the turn.
"""

dataset = "own_text"

# model
model_preset = "auto"  # layers and width follow from the number of tokens
block_size = 128
dropout = 0.2

# training
batch_size = 16
max_iters = 2000
optimizer = "muon"
learning_rate = 5e-3
weight_decay = 1.0  # 0.1 ends 0.01 higher on 200 KB (one seed)
schedule = "wsd"
decay_fraction = 1.0
warmup_iters = 20
min_lr = 0.0

# the turn
eval_interval = 100
early_stopping = 3
