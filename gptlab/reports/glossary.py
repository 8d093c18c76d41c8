"""The words that gptlab uses, one line each: for docs/GLOSSARY.md and the pages of reports.

python -m gptlab.reports.glossary > docs/GLOSSARY.md
"""

import re

# spelled as it is listed, other spellings after it: what it means
WORDS = {
    "5-gram": "a program that counts which token follows which four; it predicts without learning",
    "adapter, LoRA": "a small addition to a model that is trained while the model stays as it is",
    "adamw": "an optimizer: each parameter gets a step of its own size (Loshchilov & Hutter 2019)",
    "attention, head, heads": "how a model looks back: each head weighs the earlier tokens by "
    "what they say about the next one",
    "averaged weights, EMA": "a running mean of the parameters of the last steps; often a better "
    "model than the last step alone",
    "baseline, baselines": "what a simple program reaches on the same text; a model should beat it",
    "batch, batch_size": "the sequences that a model reads in one step",
    "bfloat16, float32, precision, dtype": "how many digits numbers have while training: fewer "
    "are faster on hardware that is made for them",
    "bits per byte, bits/byte": "the loss per byte of text, in bits: comparable between models "
    "with different tokens",
    "block_size, sequence, sequences": "the number of tokens that a model sees at once, its window",
    "BPE, bpe": "a vocabulary of frequent pieces of words, learned from the text (byte-pair "
    "encoding)",
    "checkpoint, best.pt, ckpt.pt": "a model in a file: its parameters, and what is needed to "
    "continue",
    "Chinchilla": "a rule of thumb: about 20 tokens of text for each parameter (Hoffmann et al. "
    "2022)",
    "compile, compiled, compile_model": "the program is translated for this machine first: "
    "slower to start, faster afterwards",
    "cosine, schedule": "how the learning rate changes during a run; cosine falls in a smooth "
    "curve",
    "dropout": "random parts of the model are switched off while it trains, so that it memorises "
    "less",
    "ensemble": "several models as one: the average of their probabilities",
    "epoch, epochs": "one pass over the whole training text",
    "fingerprint": "a short number that is the same only for the same data",
    "gradient, gradient norm, grad_norm": "for each parameter, the direction that lowers the "
    "loss; its norm is how long that step would be",
    "expert, n_expert": "one of a layer's MLPs, of which a router chooses a few for each token "
    "(mixture of experts)",
    "GQA, n_kv_head": "several heads share their keys and values, which saves memory "
    "(grouped-query attention)",
    "head_dim": "how many numbers each head works with, usually n_embd divided by n_head",
    "layer, layers, n_layer": "one of the equal stages of a model, each with attention and an MLP",
    "learning rate, learning_rate": "how far each step changes the parameters: too far and it "
    "breaks, too little and it takes for ever",
    "loss": "how surprised the model is by the next token, on average; lower is better",
    "lzma": "a compressor for files; it predicts by copying what occurred before",
    "mfu": "the share of the machine's possible speed that the training uses",
    "MLP, intermediate_size": "the part of a layer that works on each token by itself",
    "muon": "an optimizer for matrices; it needs fewer steps than adamw here (Jordan et al. 2024)",
    "n_embd, width, channels": "how many numbers a model keeps about each token",
    "nats": "the unit of the loss: 1 nat means hesitating between 2.7 equally likely tokens",
    "optimizer": "the rule by which a step changes the parameters",
    "overfitting": "the model memorises its text: the loss on new text rises",
    "parameter, parameters, weights": "the numbers of a model, which training adjusts",
    "perplexity": "between how many tokens the model hesitates: e to the power of the loss",
    "preset": "a named size of a model, such as tiny or gpt2",
    "recipe": "a file in config/ with the options of a training",
    "RoPE, rope": "how a model knows the order of tokens: it rotates pairs of numbers (Su 2021)",
    "run": "one training, and the folder in out/ that holds it",
    "seed": "the number from which all random choices of a run follow",
    "step, steps, max_iters": "reading one batch and changing the parameters once",
    "teacher, distill, distillation": "a model whose probabilities another one learns beside its "
    "text",
    "temperature": "how freely a model writes: 0 always takes the likeliest token, above 1 gets "
    "wild",
    "token, tokens": "a piece of text with a number: a character, or a part of a word",
    "tokenizer": "what turns text into tokens and back",
    "top_k, top-k, top_p": "the model draws only from its likeliest tokens",
    "unigram": "a program that knows how frequent each token is, and ignores what came before",
    "uniform baseline": "a model that knows nothing: every token is equally likely",
    "validation": "measured on text that the model never trains on",
    "vocabulary, vocab_size": "all tokens that a model knows",
    "warm-up, warmup, warmup_iters": "the first steps, in which the learning rate rises from zero",
    "wsd": "a schedule: warm up, stay constant, and fall only at the end (warm-up, stable, decay)",
}


def words_in(text: str) -> dict[str, str]:
    """The words, each with its meaning, of which some spelling occurs in a text."""
    found = {}
    for spellings, meaning in WORDS.items():
        listed, *_ = spellings.split(", ")
        pattern = "|".join(map(re.escape, spellings.split(", ")))
        if re.search(rf"(?<![\w-])({pattern})(?![\w-])", text, re.IGNORECASE):
            found[listed] = meaning
    return found


def glossary() -> str:
    """docs/GLOSSARY.md; each word has an anchor: GLOSSARY.md#bits-per-byte."""
    lines = [
        "# Glossary",
        "",
        "The words of gptlab in one line each. [START_HERE.md](START_HERE.md) explains how they",
        "belong together. (Generated by `python -m gptlab.reports.glossary`.)",
        "",
        "| word | meaning |",
        "|---|---|",
    ]
    for spellings, meaning in WORDS.items():
        listed, *_ = spellings.split(", ")
        lines.append(f'| <a id="{anchor(listed)}"></a>{spellings} | {meaning} |')
    return "\n".join(lines) + "\n"


def anchor(word: str) -> str:
    """The anchor of a listed word."""
    return word.lower().replace(" ", "-")


if __name__ == "__main__":
    print(glossary(), end="")
