"""Prompt embeddings: one file a text, the same bits, a key that changes with the encoder, encoders moved only when needed."""

import copy

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from torch import nn

import flows.policy
from flows.embeddings import EmbeddingStore, PromptEncoder, encoder_fingerprint
from flows.load import Model, build_policy, locate, prompt_encoder, snapshot
from flows.sampler import Sampler


class Counting:
    """Encodes a text as its length, and counts."""

    def __init__(self):
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        return {"embeds": torch.tensor([[len(text), 1 / 3] for text in texts], dtype=torch.bfloat16)}


def encoder(folder, encode, fingerprint="abc", **others):
    return PromptEncoder(encode, device=torch.device("cpu"), store=EmbeddingStore(folder, fingerprint), **others)


def test_a_text_is_encoded_once_in_all_processes(tmp_path):
    first, second = Counting(), Counting()
    before = encoder(tmp_path, first)(["a", "bcd", "a"])
    after = encoder(tmp_path, second)(["bcd", "a", "ef"])
    assert first.texts == ["a", "bcd"] and second.texts == ["ef"]
    assert torch.equal(after[0]["embeds"], before[1]["embeds"]) and after[0]["embeds"].dtype == torch.bfloat16
    assert torch.equal(before[0]["embeds"], before[2]["embeds"])
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {".safetensors"}


def test_another_encoder_reads_nothing(tmp_path):
    encoder(tmp_path, Counting())(["a"])
    other = Counting()
    encoder(tmp_path, other, "def")(["a"])
    assert other.texts == ["a"]


def test_a_damaged_file_is_written_again(tmp_path):
    encoder(tmp_path, Counting())(["a"])
    file = EmbeddingStore(tmp_path, "abc").file("a")
    file.write_bytes(file.read_bytes()[:20])
    counting = Counting()
    assert encoder(tmp_path, counting)(["a"])[0]["embeds"][0] == 1 and counting.texts == ["a"]
    assert EmbeddingStore(tmp_path, "abc").get("a") is not None


def test_a_folder_that_cannot_be_written_costs_only_speed(tmp_path):
    (tmp_path / "file").write_text("in the way")
    counting = Counting()
    assert encoder(tmp_path / "file", counting)(["a"])[0]["embeds"][0] == 1 and counting.texts == ["a"]


def test_encoders_come_for_new_texts_only(tmp_path):
    class Watched(nn.Module):
        places: list = []

        def to(self, place):
            self.places.append(str(place))
            return self

    watched = Watched()
    encode = PromptEncoder(
        Counting(), device=torch.device("cpu:0"), store=EmbeddingStore(tmp_path, "abc"), encoders=[watched], offload=True
    )
    encode(["a"])
    assert watched.places == ["cpu:0", "cpu"]
    encode(["a"])
    assert watched.places == ["cpu:0", "cpu"]

    def broken(texts):
        raise RuntimeError("out of memory")

    encode.encode = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        encode(["b"])
    assert watched.places == ["cpu:0", "cpu"] * 2


def test_an_embedding_does_not_know_of_autocast(tmp_path):
    linear, x = nn.Linear(8, 8), torch.randn(1, 8)
    encode = PromptEncoder(lambda texts: {"embeds": linear(x)}, device=torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encode(["a"])[0]["embeds"].dtype == torch.float32


def test_the_fingerprint_changes_with_what_an_embedding_depends_on(tmp_path):
    pipeline = StableDiffusion3Pipeline.from_pretrained(locate("shapes"))
    pipeline.save_pretrained(tmp_path)
    folder = tmp_path

    def mark(pipe=pipeline, folder=folder, model_id="x", text_length=1):
        return encoder_fingerprint(pipe, folder, model_id=model_id, revision=None, text_length=text_length)

    start = mark()
    assert mark() == start and len(start) == 32
    assert mark(text_length=2) != start
    assert mark(folder=None) != mark(folder=None, model_id="y")
    half = copy.copy(pipeline)
    half.text_encoder = copy.deepcopy(pipeline.text_encoder).to(torch.bfloat16)
    assert mark(half) != start
    weights = tmp_path / "text_encoder" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # weights tuned in place: the same size
    weights.write_bytes(data)
    assert mark() != start


def test_bundled_and_random_models_leave_no_files_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_CACHE", str(tmp_path))
    assert snapshot(Model()) is not None
    policy = build_policy(Model(text_length=1, device="cpu"), Sampler(), seed=0)
    usual = policy._condition(["a cyan triangle"])
    assert not list(tmp_path.rglob("*.safetensors"))
    policy._encode = prompt_encoder(policy.backbone, Model(text_length=1, device="cpu", cache="on"))
    policy._conditions.clear()
    policy._condition(["a cyan triangle"])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    policy.backbone.pipeline.encode_prompt = None  # from the disk now
    policy._conditions.clear()
    stored = policy._condition(["a cyan triangle"])
    assert all(torch.equal(usual[name], stored[name]) for name in usual)


def test_a_policy_forgets_the_oldest_conditions(monkeypatch):
    policy = build_policy(Model(random="tiny-sd3", resolution=16, device="cpu", text_length=2), Sampler(), seed=0)
    policy._condition(["a", "b", "c"])
    one = flows.policy._bytes(policy._conditions["a"])
    monkeypatch.setattr(flows.policy, "KEPT_CONDITIONS", 3 * one)
    policy._condition(["a"])
    policy._condition(["d"])
    assert list(policy._conditions) == ["c", "a", "d"]
    assert policy._condition(["a", "b", "c", "d", "e"])["embeds"].shape[0] == 5  # what is needed now is never dropped
