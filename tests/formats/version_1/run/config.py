# What was said for this run. `python train.py --config THIS_FILE` does it again.

dataset = "hamlet"  # command line
max_iters = 20  # command line
eval_interval = 10  # command line
log_interval = 5  # command line
n_layer = 1  # command line
n_head = 2  # command line
n_kv_head = 1  # command line
n_embd = 8  # command line
block_size = 16  # command line
batch_size = 4  # command line
dropout = 0.1  # command line
ema_decay = 0.9  # command line
optimizer = "muon"  # command line
compile_model = False  # command line
device = "cpu"  # command line
dtype = "float32"  # command line
eval_tokens = 100  # command line

# What followed from it:
# init_from = 'scratch'  (default)
# seed = 1337  (default)
# log_to = 'none'  (default)
# gradient_accumulation_steps = 1  (default)
# minutes = None  (default)
# learning_rate = 0.001  (default)
# weight_decay = 0.1  (default)
# beta1 = 0.9  (default)
# beta2 = 0.95  (default)
# muon_momentum = 0.95  (default)
# grad_clip = 1.0  (default)
# schedule = 'cosine'  (default)
# warmup_iters = 1  (a twentieth of the run, at most 100 steps)
# lr_decay_iters = 20  (max_iters)
# min_lr = 0.0001  (a tenth of learning_rate)
# decay_fraction = 0.2  (default)
# early_stopping = 0  (default)
# sample_interval = 0  (default)
# sample_prompt = ''  (default)
# vocab_size = 16  (from the dataset)
# mlp_ratio = 4.0  (default)
# bias = False  (default)
# use_rms_norm = True  (default)
# use_swiglu = True  (default)
# activation = None  (default)
# position_encoding = 'rope'  (default)
# rope_theta = 10000.0  (default)
# qk_norm = False  (default)
# tie_weights = True  (default)
# norm_eps = 1e-05  (default)
# head_dim = 4  (default)
# intermediate_size = 32  (default)
# init_std = 0.02  (default)
# init_projection = 'scaled'  (default)
# gradient_checkpointing = False  (default)

# Machine: one CPU
