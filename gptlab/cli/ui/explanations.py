"""The answers to `?` in the wizard, for someone who has never trained a model."""

DEVICE = """\
Training consists of a huge number of multiplications. A graphics card (CUDA, ROCm, MPS, XPU) does
them ten to a thousand times faster than the processor (cpu), which can still train small models.
The recommended device is the fastest one that has just passed a trial. The precision is the number
of digits of each number: fewer digits are faster on hardware that is made for them, and slower
elsewhere."""

DATASET = """\
A model learns from text and writes text of the same kind: plays from plays, recipes from recipes.
Before training, the text is turned into numbers, and a tenth of it is set aside to measure how well
the model predicts text that it has not seen. Shakespeare (1 MB of plays) is the usual first try.
For your own text, a few hundred kB are enough to play with, and more is better: 1 MB gives words
and names, 100 MB gives sentences."""

OWN_TEXT = """\
Type the path of a text file or of a folder with text files, or drop it on this window; the Tab key
completes names. You can also use a pattern such as books/*.txt, a table (.jsonl, .csv, .parquet:
one document per row), or hf:OWNER/NAME for a dataset on the Hugging Face hub. Of web pages,
e-books, Word and PDF files the text is read."""

SIZE = """\
A model is a stack of layers. Each layer has a width (how many numbers it keeps about each token)
and attention heads (how many earlier places it can look at together). The parameters are the
numbers that training adjusts: more of them can learn more, but need more text, time and memory. A
large model trained for a short time is worse than a small one. "fit" chooses the size that suits
this text and the time that you choose next."""

LAYERS = """\
Each layer looks at the text so far once more. 4 layers are enough for names and short lines, 8 for
the style of an author. GPT-2's smallest model has 12, the next one 24. Any number works."""

HEADS = """\
Each layer has several attention heads, which look at different earlier places. The width is divided
among them, so it must be a multiple of their number; 32 to 64 numbers per head are common."""

WIDTH = """\
The number of values that the model keeps about each token. Parameters and time grow with its
square."""

LENGTH = """\
In each step the model sees a few thousand tokens of text and adjusts all its parameters a little.
The first hundred steps teach it letters, a few hundred more teach it words. The times are for this
model on this machine, measured a moment ago. You can stop at any time with Ctrl-C: the progress is
saved, and you can continue later."""

MINUTES = """\
The run takes as many steps as fit into this time, and the learning rate falls over those steps."""

SUMMARY = """\
Nothing has started yet. To change an option, type its name and value, such as: dropout 0.2, or:
seed 7 batch_size 8. ? NAME explains an option; python train.py --help lists all names. The words
above: the learning rate is how far each step moves the parameters; the optimizer is the rule by
which it moves them (muon, or the older adamw); the schedule is how the rate changes (wsd: it rises,
stays, and falls to its end; cosine: it falls along a curve). Dropout leaves out numbers at random
and weight decay keeps parameters small, both against learning the text by heart. 20 tokens per
parameter make the best use of a machine's time (the Chinchilla study); small texts allow less. To
change an earlier answer, go back with b."""

START = """\
A recipe is a small file with options in config/. With it, python train.py --config FILE trains the
same model without questions. The run also keeps a recipe in its own folder."""
