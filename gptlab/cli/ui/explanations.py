"""What `?` answers in the wizard, for someone who has never trained a model."""

DEVICE = """\
Training is a great number of multiplications. A graphics card (CUDA, ROCm, MPS, XPU) does them ten
to a thousand times faster than the processor (cpu), which can train small models all the same.
The recommended device is the fastest that passed a trial just now. The precision is how many
digits each number has: fewer are faster where the hardware is made for them, and slower
elsewhere."""

DATASET = """\
A model learns from text, and writes text of the kind that it has seen: plays from plays, recipes
from recipes. Before training, the text is turned into numbers and a tenth of it is set aside, to
measure what the model has understood of text that it did not see. Shakespeare (1 MB of plays) is
the customary first try. For text of your own, a few hundred kB are enough to play with, and more
is better: 1 MB gives words and names, 100 MB gives sentences."""

OWN_TEXT = """\
Type the path of a text file, or of a folder with text files, or drop it on this window; the Tab key
completes names. A pattern such as books/*.txt works too, a table (.jsonl, .csv, .parquet: one
document per row), and hf:OWNER/NAME for a dataset of the Hugging Face hub. PDF and DOCX are not
text: save them as text first."""

SIZE = """\
A model is a stack of layers; each has a width (how many numbers it keeps about each token) and
attention heads (how many earlier places it can look at, at once). Its parameters are the numbers
that training adjusts: more of them can learn more, and need more text, time and memory. A large
model trained for a short time is worse than a small one. "fit" takes the size that suits this text
and the time that you choose next."""

LAYERS = """\
Each layer looks at the text so far once more. 4 are enough for names and short lines, 8 for the
style of an author, 12 is GPT-2's smallest model, 24 its second; any number works."""

HEADS = """\
Each layer has several attention heads, which look at different earlier places. The width is divided
among them, so it must be a multiple of their number; 32 to 64 numbers for each is usual."""

WIDTH = """\
How many numbers the model keeps about each token. Parameters and time grow with its square."""

LENGTH = """\
In a step the model sees a few thousand tokens of text and moves all its parameters a little. The
first hundred steps teach it the letters, some hundred more teach it words. The times stand for this
model on this machine: they were measured a moment ago. You can stop at any time with Ctrl-C: what
was learned is kept, and can be continued."""

MINUTES = """\
As many steps as fit into this time are taken, and the learning rate falls to its end with them."""

SUMMARY = """\
Nothing has been started yet. b goes back to an earlier question. To change one setting, type its
name and value, such as: dropout 0.2, or: seed 7 batch_size 8. The names are those of
python train.py --help."""

START = """\
A recipe is a small file of settings in config/, with which python train.py --config FILE trains the
same model without questions. The run itself also keeps one in its own folder."""
