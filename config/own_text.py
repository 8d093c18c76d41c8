"""Your own small text: a diary, a chat log, the poems of a friend (20 KB to some MB).

Trains  a model sized from the text, about one parameter for each token that it has
On      python prepare.py YOUR_TEXT.txt --dataset own_text
        (or any other name, and then --dataset NAME here)
Takes   minutes on a laptop; it stops by itself
Expect  a validation loss below the 5-gram baseline for 100 KB of text and more: the first 200 KB
        of tiny Shakespeare reached 2.33 bits per byte after 1,200 steps, the 5-gram has 2.46

A small text is read many times over. For a while the model learns how the text works, and the
loss on the validation part falls; then it begins to learn the text by heart, and that loss rises
again although the training loss goes on falling. The turn is the best point. Here dropout delays
it, the run stops after three evaluations without a new lowest loss, and best.pt has the weights
from before the turn.
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
weight_decay = 0.1
schedule = "wsd"
decay_fraction = 1.0
warmup_iters = 20
min_lr = 0.0

# the turn
eval_interval = 100
early_stopping = 3
