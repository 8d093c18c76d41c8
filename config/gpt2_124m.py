"""GPT-2 small (124M parameters) on a web corpus, for a machine with 8 large GPUs.

Trains  124M parameters, the architecture of GPT-2, exportable
On      python prepare.py hf:Skylion007/openwebtext --tokenizer gpt2 --dataset openwebtext
Run     torchrun --standalone --nproc_per_node 8 train.py --config config/gpt2_124m.py
Takes   about 4 days on 8 A100, estimated from 6 FLOPs per parameter and token; not measured
Expect  a validation loss near 2.85, which others report for this configuration; not measured
"""

dataset = "openwebtext"

# model
model_preset = "gpt2"

# training: half a million tokens per step
batch_size = 12
gradient_accumulation_steps = 40  # micro-batches of a step, over all processes
max_iters = 600_000
learning_rate = 6e-4
min_lr = 6e-5
warmup_iters = 2000
weight_decay = 0.1
beta2 = 0.95
grad_clip = 1.0

# evaluation
eval_interval = 1000
eval_tokens = 2_000_000
