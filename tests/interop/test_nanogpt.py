"""Checkpoints in nanoGPT's format: the same logits, its characters, and no code from pickles."""

import pickle

import pytest
import torch

from gptlab.data.downloads import gpt2_tokenizer
from gptlab.errors import CheckpointError, ConfigError, GPTLabError, TokenizerError
from gptlab.files import remove_folder
from gptlab.interop.read.models import import_model, local_checkpoint
from gptlab.runs import load_checkpoint

transformers = pytest.importorskip("transformers")

ALPHABET = "\n !abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def reference():
    """A GPT-2 of transformers as nanoGPT computes it: exact GELU, biases that may be absent."""

    def build(vocab_size, bias):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=4,
            activation_function="gelu", bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        model = transformers.GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
                if name.endswith("bias") and not bias:
                    parameter.zero_()
        return model

    return build


def checkpoint_of(model, bias, prefix="", masks=False, **more):
    """The content that nanoGPT's train.py saves: Linear layers, so matrices as [out, in]."""
    weights = {}
    for name, value in model.state_dict().items():
        if name.endswith("bias") and not bias:
            continue
        is_conv1d = value.dim() == 2 and ".h." in name
        weights[prefix + name] = value.T.contiguous() if is_conv1d else value
    if masks:  # what a torch without fused attention kept
        weights[f"{prefix}transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
    optimizer = torch.optim.AdamW(model.parameters())
    return {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "model_args": dict(
            n_layer=2, n_head=4, n_embd=32, block_size=64, bias=bias,
            vocab_size=model.config.vocab_size, dropout=0.2,
        ),
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.47),
        "config": {"dataset": "letters", "out_dir": "out-letters", "learning_rate": 1e-3},
    } | more  # fmt: skip


def write_meta(path, alphabet=ALPHABET):
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = {character: i for i, character in enumerate(alphabet)}
    names = {i: character for character, i in ids.items()}
    path.write_bytes(pickle.dumps({"vocab_size": len(ids), "itos": names, "stoi": ids}))


@pytest.fixture
def save(home):
    """Saves a content as out-letters/ckpt.pt beside data/letters/meta.pkl, nanoGPT's layout."""

    def save(content, meta=True, **options):
        folder = home / "nano" / "out-letters"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / "ckpt.pt", **options)
        if meta:
            write_meta(home / "nano" / "data" / "letters" / "meta.pkl")
        return folder / "ckpt.pt"

    return save


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_the_logits_are_those_of_the_trained_model(reference, save, home, bias, prefix):
    model = reference(len(ALPHABET), bias)
    save(checkpoint_of(model, bias, prefix, masks=bias))
    folder = import_model(str(home / "nano" / "out-letters"))
    assert folder == home / "out" / "out-letters"
    checkpoint = load_checkpoint(folder)
    tokens = torch.randint(len(ALPHABET), (2, 64))
    with torch.no_grad():
        ours, peer = checkpoint.model(tokens)[0], model(tokens).logits
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, peer, atol=1e-4, rtol=0)
    assert checkpoint.model.config.bias is bias
    assert checkpoint.step == 2000 and checkpoint.val_loss == pytest.approx(1.47)


def test_the_format_of_torch_before_1_6_is_read_too(reference, save):
    path = save(
        checkpoint_of(reference(len(ALPHABET), True), True), _use_new_zipfile_serialization=False
    )
    assert load_checkpoint(import_model(str(path))).step == 2000


def test_the_characters_keep_their_ids_and_there_is_no_end_of_text(reference, save):
    folder = import_model(str(save(checkpoint_of(reference(len(ALPHABET), True), True))))
    tokenizer = load_checkpoint(folder).tokenizer
    assert tokenizer.kind == "char" and tokenizer.eot_id is None
    assert tokenizer.vocab_size == len(ALPHABET)
    assert tokenizer.encode("a b!\n") == [ALPHABET.index(c) for c in "a b!\n"]
    assert tokenizer.decode(tokenizer.encode("hello there\n")) == "hello there\n"
    with pytest.raises(TokenizerError, match="'Z'"):
        tokenizer.encode("Z")


def test_an_alphabet_that_is_not_sorted_keeps_its_order(reference, save, tmp_path):
    write_meta(tmp_path / "own.pkl", ALPHABET[::-1])
    path = save(checkpoint_of(reference(len(ALPHABET), True), True))
    tokenizer = load_checkpoint(import_model(str(path), meta=tmp_path / "own.pkl")).tokenizer
    assert tokenizer.encode("zyx!") == [ALPHABET[::-1].index(c) for c in "zyx!"]


def test_a_padded_table_of_gpt2_stays_as_it_is_with_gpt2s_tokenizer(reference, save):
    try:
        gpt2 = gpt2_tokenizer()
    except TokenizerError as error:
        pytest.skip(str(error))
    path = save(checkpoint_of(reference(50304, True), True), meta=False)
    checkpoint = load_checkpoint(import_model(str(path)))
    assert checkpoint.model.config.vocab_size == 50304
    assert checkpoint.tokenizer.fingerprint == gpt2.fingerprint


def test_init_from_takes_its_folder_or_its_file(reference, save, home):
    path = save(checkpoint_of(reference(len(ALPHABET), True), True))
    for word in (str(path), str(path.parent)):
        folder = local_checkpoint(word, print)
        assert folder == home / "out" / "out-letters"
        assert load_checkpoint(folder).content["imported"]["from"] == word
        remove_folder(folder)


# What does not fit --------------------------------------------------------------------------------


def refusal(path, **options):
    with pytest.raises(GPTLabError) as caught:
        import_model(str(path), path.parent / "run", **options)
    assert not (path.parent / "run").exists()
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return caught.value


class Opens:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_inside_a_checkpoint_is_refused_and_not_run(reference, save, tmp_path, zipped):
    content = checkpoint_of(reference(len(ALPHABET), True), True, extra=Opens(tmp_path / "ran"))
    error = refusal(save(content, _use_new_zipfile_serialization=zipped))
    assert isinstance(error, CheckpointError) and "could run somebody's code" in str(error)
    assert not (tmp_path / "ran").exists()


def test_code_inside_meta_pkl_is_refused_and_not_run(reference, save, tmp_path):
    path = save(checkpoint_of(reference(len(ALPHABET), True), True))
    meta = tmp_path / "meta.pkl"
    meta.write_bytes(pickle.dumps({"stoi": Opens(tmp_path / "ran")}))
    assert "plain values" in str(refusal(path, meta=meta))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x80\x04", pickle.dumps([1]), pickle.dumps({"stoi": {"ab": 0}})),
        *(pickle.dumps({"stoi": {"a": 0, "b": last}}) for last in (2, "1")),
    ],
    ids=["empty", "cut short", "a list", "two letters", "a gap", "text as id"],
)
def test_a_meta_pkl_without_a_vocabulary_is_named(reference, save, tmp_path, content):
    path = save(checkpoint_of(reference(len(ALPHABET), True), True))
    (tmp_path / "meta.pkl").write_bytes(content)
    assert "meta.pkl" in str(refusal(path, meta=tmp_path / "meta.pkl"))


def test_a_model_of_characters_without_its_meta_pkl_asks_for_it(reference, save):
    path = save(checkpoint_of(reference(len(ALPHABET), True), True), meta=False)
    error = refusal(path)
    assert isinstance(error, ConfigError) and "--meta" in str(error)


def test_a_meta_pkl_of_another_alphabet_is_refused(reference, save, tmp_path):
    write_meta(tmp_path / "meta.pkl", ALPHABET[1:])
    path = save(checkpoint_of(reference(len(ALPHABET), True), True))
    assert "has 28 characters and the model 29 ids" in str(
        refusal(path, meta=tmp_path / "meta.pkl")
    )


def test_a_truncated_checkpoint_and_odd_contents_are_named(reference, save):
    content = checkpoint_of(reference(len(ALPHABET), True), True)
    path = save(content)
    path.write_bytes(path.read_bytes()[:5000])
    assert "ckpt.pt is damaged" in str(refusal(path))
    for odd in ([1, 2], {"model": 3}, {"model": {}, "model_args": None}):
        assert "not a checkpoint of nanoGPT" in str(refusal(save(odd)))
    arguments = content["model_args"]
    assert "no valid block_size" in str(refusal(save(content | {"model_args": {"n_head": 1}})))
    wrong = content | {"model_args": arguments | {"n_embd": 64}}
    assert "should have (29, 64)" in str(refusal(save(wrong)))
    del content["model"]["transformer.h.1.ln_2.weight"]
    assert "no tensor transformer.h.1.ln_2.weight" in str(refusal(save(content)))
