"""Fine-tune SmolLM2-135M on plays: adapters beside its frozen weights (docs/FINETUNE.md).

Trains  adapters of rank 8, 2.4 million parameters beside the model's 135 million
On      python prepare.py shakespeare --tokenizer out/smollm2-135m --dataset shakespeare_smollm2
        (after python gpt.py import smollm2-135m)
Takes   about 20 minutes on 2 slow CPU cores and 1.9 GB of memory, according to its plan
Expect  a validation loss of 3.56 after 30 steps of half the size, from 3.93 before training
        (windows of 128 tokens; 1.66 bits per byte, from 1.83)
"""

dataset = "shakespeare_smollm2"

# model: all other options follow from the initial model
init_from = "smollm2-135m"
block_size = 256

# what is trained
lora_rank = 8
lora_alpha = 16.0

# training: a lower learning rate than for a new model, and few steps
batch_size = 2
gradient_accumulation_steps = 2  # the activations of two sequences at a time
max_iters = 60
learning_rate = 5e-4
warmup_iters = 5
eval_interval = 20
eval_tokens = 8192
