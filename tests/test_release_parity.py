"""Under the release presets every token id, label and weight is the released code's, element for element.

The golden pairs: substitution, insertion, deletion, several segments, edits at both ends, identical texts, a long pair
on which difflib's autojunk acts, odd white space and scripts, and two texts with nothing in common.
"""

import dataclasses
import json

import numpy as np
import pytest

from rlhfv_jax import cli, prepare, refcache, settings
from rlhfv_jax.data import encoding, sources
from rlhfv_jax.data.chat import (
    LLAVA_V1,
    MUFFIN,
    MUFFIN_RELEASE,
    MUFFIN_RELEASE_CHAT,
    TEMPLATES,
    VICUNA_V1_1,
    encode_turns,
)
from rlhfv_jax.data.segments import Diff
from rlhfv_jax.data.sources import PreferenceRecord
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE

RELEASES = ("release_2023_12", "release_2024_02")
QUERIES = 8
# The preset table, written down a second time.
TABLE = {
    "rlhfv_paper": "5 0.5 True all 1 token response False answer 32 7 0 5e-7 none none - frozen_A muffin 2048",
    "release_2023_12": "5 0.5 False replace 3 token row True muffin 32 0 320 5e-7 untrustworthy none float16 "
    "full muffin 2048",
    "release_2024_02": "1.1 0.1 False replace 3 token row True muffin 8 0 2160 5e-7 untrustworthy untrustworthy "
    "bfloat16 full muffin 2048",
}
KEYS = (
    "ddpo.gamma ddpo.beta ddpo.average ddpo.hunks ddpo.min_match ddpo.unit ddpo.diff_over ddpo.autojunk "
    "ddpo.label_mask optim.batch_size optim.epochs optim.steps optim.lr "
    "data.augment data.reference_augment data.reference_dtype optim.trainable data.template data.max_length"
)


def preset(name: str) -> settings.Settings:
    return settings.from_dict(cli._load(f"{cli.config_folder() / 'ddpo.py'}:{name}").to_dict())


@pytest.fixture(scope="module")
def llama(fixtures) -> MuffinTokenizer:
    return MuffinTokenizer.from_file(fixtures / "tiny-muffin/tokenizer.model")


@pytest.fixture(scope="module")
def fast(fixtures) -> MuffinTokenizer:
    """Keeps the white space around image tokens, as the fast tokenizer and LLaVA's do."""
    return MuffinTokenizer((fixtures / "tiny-muffin/tokenizer.model").read_bytes(), fast_ids=True)


@pytest.fixture(scope="module")
def conversations(fixtures) -> dict:
    return json.loads((fixtures / "conversation.json").read_text())


@pytest.fixture(scope="module")
def golden(fixtures) -> tuple[list[dict], dict[str, np.ndarray]]:
    return json.loads((fixtures / "ddpo.json").read_text())["pairs"], dict(np.load(fixtures / "ddpo.npz"))


@pytest.fixture(scope="module")
def records(fixtures, golden) -> list[PreferenceRecord]:
    return [
        PreferenceRecord(
            str(pair["index"]),
            (fixtures / "images" / pair["image"]).read_bytes(),
            pair["question"],
            pair["chosen"],
            pair["rejected"],
        )
        for pair in golden[0]
    ]


def encode(name: str, records, tokenizer, **changes):
    s = preset(name)
    options = {"gamma": s.ddpo.gamma, "spans": s.data.spans, "label_mask": s.ddpo.label_mask}
    diff = Diff(s.ddpo.hunks, s.ddpo.min_match, s.ddpo.unit, s.ddpo.diff_over, s.ddpo.autojunk)
    options |= {"diff": diff, "max_length": s.data.max_length, "too_long": s.data.too_long}
    return encoding.encode_pairs(records, tokenizer, TEMPLATES[s.data.template], QUERIES, **(options | changes))


@pytest.mark.parametrize("name", TABLE)
def test_a_preset_is_the_table(name):
    s = preset(name)
    found = [settings.get(s, key) for key in KEYS.split()]
    wanted = TABLE[name].split()
    shown = [value if isinstance(value, str) else float(value) for value in found]
    assert [value or "-" if isinstance(value, str) else value for value in shown] == [
        {"True": 1.0, "False": 0.0}.get(word, word)
        if isinstance(value, str) or word in ("True", "False")
        else float(word)
        for value, word in zip(shown, wanted, strict=True)
    ]


@pytest.mark.parametrize("name", RELEASES)
def test_tokens_labels_and_weights_of_every_golden_pair_are_equal(name, records, golden, llama):
    pairs, _ = encode(name, records, llama)
    described, arrays = golden
    gamma = preset(name).ddpo.gamma
    assert len(pairs) == len(described) == 10
    for i, (pair, facts) in enumerate(zip(pairs, described, strict=True)):
        for side, word in ((0, "win"), (1, "rej")):
            row, kind = pair.rows[side], facts["kind"]
            labels = arrays[f"pair{i}_{word}_labels"][1:]
            np.testing.assert_array_equal(row.tokens, arrays[f"pair{i}_{word}_input_ids"], err_msg=kind)
            np.testing.assert_array_equal(row.labels, labels, err_msg=kind)
            factor = arrays[f"pair{i}_{word}_token_weight"]  # for gamma 5, prompt tokens 1 too
            expected = np.where(labels == IGNORE, 0, np.where(factor == 5, gamma, factor)).astype(np.float32)
            np.testing.assert_array_equal(pair.weights[side], expected, err_msg=kind)


def test_weights_for_the_later_gamma_are_the_collated_batches(records, golden, llama):
    pairs, _ = encode("release_2024_02", records, llama)
    for side, word in ((0, "win"), (1, "rej")):
        stored = golden[1][f"batch_{word}_token_weight_gamma1.1"]
        for i, pair in enumerate(pairs):
            weights, labels = pair.weights[side], pair.rows[side].labels
            expected = np.where(labels == IGNORE, 0, stored[i, : len(labels)])
            np.testing.assert_array_equal(weights, expected.astype(np.float32))


@pytest.mark.parametrize("name", RELEASES)
def test_without_autojunk_the_long_pair_and_only_it_changes(name, records, golden, llama):
    diff = Diff("replace", 3, "token", "row", autojunk=False)
    for pair, facts in zip(encode(name, records, llama, diff=diff)[0], golden[0], strict=True):
        for side, word in ((0, "win"), (1, "rej")):
            marked = np.flatnonzero(pair.weights[side] > 1)
            scored = np.flatnonzero(pair.rows[side].labels != IGNORE)
            assert marked.tolist() == [i for i in facts[f"without_autojunk_{word}_changed_ids"] if i in set(scored)]
    assert [facts["kind"] for facts in golden[0] if not facts["without_autojunk_same"]] == [
        "long_over_200_tokens_autojunk"
    ]


def test_the_papers_reading_marks_insertions_and_deletions_that_the_release_does_not(records, golden, llama):
    kinds = {facts["kind"]: i for i, facts in enumerate(golden[0])}
    ours, release = (encode(name, records, llama)[0] for name in ("rlhfv_paper", "release_2023_12"))
    for kind, side in (("pure_insertion", 0), ("pure_deletion", 1)):
        i = kinds[kind]
        assert (ours[i].weights[side] == 5).any() and not (release[i].weights[side] == 5).any()


# Conversations.


def turns(conversation) -> list[tuple[str, str]]:
    values = [turn["value"] for turn in conversation]
    return list(zip(values[::2], values[1::2], strict=True))


def test_conversations_of_one_and_several_turns_are_equal(conversations, llama, fast):
    """Where an image ends a question, the released mask is one token off from there on; that is in the goldens too."""
    shown = 0
    for item in conversations["training"]:
        queries = QUERIES if "<image>" in str(item["conversation"]) else 0
        tokens, labels, answers = encode_turns(llama, MUFFIN, turns(item["conversation"]), queries, "muffin")
        assert tokens.tolist() == item["input_ids"]
        assert labels.tolist() == item["labels"][1:]
        shown = max(shown, len(answers))
        ids, _, _ = encode_turns(fast, MUFFIN, turns(item["conversation"]), queries)
        assert ids.tolist() == item["fast_input_ids"]
    assert shown == 3


def test_the_released_evaluation_prompts_are_equal(conversations, llama, fast):
    for item in conversations["inference"]:
        prompt = MUFFIN_RELEASE.prompt(item["question"], QUERIES)
        assert prompt == item["prompt"]
        assert llama.encode(prompt) == item["input_ids"]
        assert fast.encode(prompt) == item["fast_input_ids"]


def test_the_released_chat_prompts_are_equal(conversations, llama):
    for item in conversations["multi_turn_chat"]:
        prompt = MUFFIN_RELEASE_CHAT.prompt(item["question"], 0, turns(item["history_before"]))
        assert f"<s>{prompt}" == item["text"]
        assert llama.encode(prompt) == item["input_ids"]


def test_vicuna_conversations_are_equal(conversations, llama):
    for item in conversations["preprocess_v1"]:
        tokens, labels, _ = encode_turns(llama, VICUNA_V1_1, turns(item["conversation"]), QUERIES)
        assert tokens.tolist() == item["input_ids"]
        assert labels.tolist() == item["labels"][1:]


def test_llava_conversations_are_equal(fixtures, fast):
    """LLaVA writes one placeholder for the image; an answer with its separator gets no labels there, and does here."""
    seen = 0
    for item in json.loads((fixtures / "other-models/llava/conversation.json").read_text())["conversations"]:
        conversation, expected = turns(item["conversation"]), item["legacy_true"]
        queries = int("<image>" in str(item["conversation"]))
        tokens, labels, _ = encode_turns(fast, LLAVA_V1, conversation, queries)
        assert np.where(tokens == fast.image_token, -200, tokens).tolist() == expected["input_ids"]
        if not expected["warning"]:
            assert labels.tolist() == expected["labels"][1:]
            seen += 1
        prompt = LLAVA_V1.prompt(conversation[-1][0], queries, conversation[:-1])
        assert prompt.replace("<im_patch>", "<image>") == item["inference_prompt"]
    assert seen == 4


@pytest.mark.parametrize("template", ["vicuna_v1_1", "llava_v1", "words"])
def test_the_released_mask_is_refused_for_templates_it_has_no_meaning_for(tokenizer, template):
    with pytest.raises(UserError, match=f"the template {template} has no released labels"):
        encode_turns(tokenizer, TEMPLATES[template], [("What?", "A dog.")], 0, "muffin")


# Stored log-probs.


def with_logps(records, golden) -> list[PreferenceRecord]:
    arrays = golden[1]
    return [
        dataclasses.replace(
            record,
            logps=tuple(
                tuple(arrays[f"pair{i}_ref_{word}_per_token_logp_B"].astype(float).tolist()) for word in ("win", "rej")
            ),
        )
        for i, record in enumerate(records)
    ]


def test_stored_log_probs_reach_the_targets_they_belong_to(records, golden, llama, tmp_path):
    """Through the published parquet with its `logps`, back, and into the array that the loss reads."""
    distinct = [record for record in with_logps(records, golden) if record.chosen != record.rejected]
    sources.write_parquet(distinct, tmp_path / "pairs.parquet")
    pairs, stats = encode("release_2024_02", sources.read(tmp_path / "pairs.parquet"), llama)
    found = refcache.stored(pairs, stats.longest_row)
    for pair, logps in zip(pairs, found, strict=True):
        for side, word in ((0, "win"), (1, "rej")):
            labels = pair.rows[side].labels
            expected = golden[1][f"pair{pair.record.id}_ref_{word}_per_token_logp_B"]
            np.testing.assert_array_equal(logps[side, : len(labels)][labels != IGNORE], expected[labels != IGNORE])
            assert not logps[side, len(labels) :].any()


def test_stored_log_probs_that_do_not_fit_are_refused(records, golden, llama):
    """The released loader cuts a longer row and trains on it."""
    pairs, stats = encode("release_2024_02", with_logps(records, golden), llama)
    chosen, rejected = pairs[0].record.logps
    longer = dataclasses.replace(pairs[0].record, logps=((*chosen, 0.0), rejected), where="pairs.parquet, row 0")
    with pytest.raises(UserError, match=r"row 0, logps: 89 stored log-probs for the chosen answer, whose row has 88"):
        refcache.stored([dataclasses.replace(pairs[0], record=longer)], stats.longest_row)
    without = dataclasses.replace(pairs[0].record, logps=None)
    with pytest.raises(UserError, match="no stored log-probs"):
        refcache.stored([dataclasses.replace(pairs[0], record=without)], stats.longest_row)


def test_only_equal_views_and_dtypes_must_agree_at_the_first_step():
    assert prepare.comparable(preset("rlhfv_paper"))
    assert not any(prepare.comparable(preset(name)) for name in RELEASES)
