"""AMBER: both halves equal to the official scorer, joined, and what is refused."""

import importlib
import json

import pytest
from conftest import shared

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import amber, tagging
from rlhfv_jax.evals import amber_descriptions as descriptions
from rlhfv_jax.evals.answers import Answer
from rlhfv_jax.evals.tagging import Tagger

FOLDER = "data/benchmarks/amber"
DESCRIBED = ("generative_first83", "instructblip7b_8bit_greedy_first300_generative")
NAMES = {"CHAIR": "chair", "Cover": "cover", "Hal": "hal", "Cog": "cog"}
RULES = Tagger("rules", tagging.by_rule)


def rows(name):
    return [json.loads(line) for line in shared(f"{FOLDER}/{name}.jsonl").read_text().split("\n") if line]


def expected(name):
    return json.loads(shared(f"{FOLDER}/expected.json").read_text())[name]


def answers(given):
    return [Answer(str(row["id"]), row["response"]) for row in given]


def score(given, tagger=RULES):
    return amber.score(answers(given), shared(FOLDER), partial=True, tagger=tagger)


class Recorded:
    """Tags that leave exactly the object nouns that the official run kept, by the text that they are of."""

    def __init__(self, given, words):
        self.words = words
        self.nouns = {tuple(descriptions.tokens(row["response"])): row["expected_object_nouns"] for row in given}

    def __call__(self, found):
        wanted, tags = list(self.nouns[tuple(found)]), []
        for token in found:
            lemma = descriptions.noun_lemma(token)
            hit = bool(wanted) and lemma == wanted[0]
            tags.append("NN" if hit or lemma not in self.words.known else "VB")
            wanted = wanted[1:] if hit else wanted
        assert not wanted
        return tags


@pytest.mark.parametrize("name", DESCRIBED)
def test_descriptions_with_the_official_tags_equal_the_official_scorer(name):
    given = rows(name)
    tags = Recorded(given, descriptions.read_words(shared(FOLDER), "AMBER"))
    scores = score(given, Tagger("recorded", tags, official=True))
    for theirs, ours in NAMES.items():
        assert scores.metrics[f"generative/{ours}"].value == expected(name)["Generative Task"][theirs]
    assert [item["mentioned"] for item in scores.items] == [row["expected_object_nouns"] for row in given]
    for row, item in zip(given, scores.items, strict=True):
        if "expected_single" in row:
            one = descriptions.metrics([item])
            assert {theirs: one[ours].value for theirs, ours in NAMES.items()} == row["expected_single"], row["id"]


@pytest.mark.parametrize("name", DESCRIBED)
def test_descriptions_without_tagger_data_are_within_four_tenths(name):
    scores = score(rows(name))
    for theirs, ours in NAMES.items():
        assert scores.metrics[f"generative/{ours}"].value == pytest.approx(
            expected(name)["Generative Task"][theirs], abs=0.4
        )
    assert scores.settings["tagger"] == "rules, in place of NLTK's"


@pytest.mark.parametrize("name", DESCRIBED)
def test_descriptions_with_nltks_own_tagger_are_exact(name):
    tagger = tagging.noun_tagger()
    if not tagger.official:
        pytest.skip("the data of NLTK's perceptron tagger is not installed")
    scores = score(rows(name), tagger)
    for theirs, ours in NAMES.items():
        assert scores.metrics[f"generative/{ours}"].value == expected(name)["Generative Task"][theirs]


def test_nltks_tagger_is_taken_where_its_data_is_installed(tmp_path, monkeypatch):
    data, perceptron = importlib.import_module("nltk.data"), importlib.import_module("nltk.tag.perceptron")
    monkeypatch.setattr(data, "path", [str(tmp_path)])
    tagging._nltk.cache_clear()
    assert not tagging.noun_tagger().official
    folder = tmp_path / "taggers" / "averaged_perceptron_tagger_eng"
    folder.mkdir(parents=True)
    trained = perceptron.PerceptronTagger(load=False)
    trained.train([[("A", "DT"), ("dog", "NN"), ("can", "MD"), ("run", "VB")]] * 20)
    trained.save_to_json("eng", str(folder))
    tagging._nltk.cache_clear()
    try:
        tagger = tagging.noun_tagger()
        assert (tagger.name, tagger.official) == ("nltk", True)
        assert list(tagger.tags(["A", "dog", "can", "run"])) == ["DT", "NN", "MD", "VB"]
    finally:
        tagging._nltk.cache_clear()


@pytest.mark.parametrize("name", ["disc_all_yes", "disc_hash80", "instructblip7b_8bit_greedy_first300_disc"])
def test_yes_no_questions_equal_the_official_scorer(name):
    given = json.loads(shared(f"{FOLDER}/{name}.json").read_text())
    folder = shared(FOLDER)
    scores = amber.score([Answer(identity, text) for identity, text in given.items()], folder, partial=True)
    names = {"Descriminative Task": "discriminative", "Exsitence": "existence"}
    official = {key: part for key, part in expected(name).items() if isinstance(part, dict)}
    assert len(official) == 7
    for part, values in official.items():
        for metric, value in values.items():
            found = scores.metrics[f"{names.get(part, part.lower())}/{metric.lower()}"]
            assert found.value == value
            assert found.low is None or found.low - 0.1 <= value <= found.high + 0.1


def test_both_halves_join_to_the_amber_score():
    name = "instructblip7b_8bit_greedy_first300"
    given = rows(f"{name}_generative")
    said = json.loads(shared(f"{FOLDER}/{name}_disc.json").read_text())
    tags = Recorded(given, descriptions.read_words(shared(FOLDER), "AMBER"))
    both = answers(given) + [Answer(identity, text) for identity, text in said.items()]
    scores = amber.score(both, shared(FOLDER), True, Tagger("recorded", tags, official=True))
    joined = scores.metrics["amber_score"]
    assert joined.value == pytest.approx(expected(f"{name}_disc")["AMBER_score_from_these"])
    assert joined.low < joined.value < joined.high and joined.high - joined.low < 3
    assert (len(scores.items), scores.settings["descriptions_unanswered"]) == (300 + 14216, 704)
    with pytest.raises(UserError, match="704 of 1004 descriptions have no answer"):
        amber.score(both, shared(FOLDER))


def copied(folder, *names):
    for name in names:
        (folder / name).write_bytes(shared(f"{FOLDER}/{name}").read_bytes())
    return folder


def test_without_the_association_table_only_descriptions_alone_are_refused(tmp_path):
    folder = copied(tmp_path, "annotations.json")
    scores = amber.score([Answer("1", "A dog."), Answer("1005", "No")], folder, partial=True)
    assert scores.settings["descriptions_passed_over"] == 1 and "amber_score" not in scores.metrics
    with pytest.raises(UserError, match=r"relation\.json is missing; it comes from junyangwang0410/AMBER"):
        amber.score([Answer("1", "A dog.")], folder, partial=True)


@pytest.mark.parametrize(
    ("table", "says"),
    [("[]", "expected an object from words"), ('{"sky": "cloud"}', "to lists of words"), ("{}", "stands not in")],
)
def test_a_misshapen_association_table_is_refused(tmp_path, table, says):
    folder = copied(tmp_path, "annotations.json", "safe_words.txt")
    (folder / "relation.json").write_text(table)
    with pytest.raises(UserError, match=says):
        amber.score([Answer("1", "A dog.")], folder, partial=True)


def test_close_words_count_as_the_same_where_a_similarity_is_given():
    words = descriptions.Words({"sofa": ["couch"], "cat": [], "dog": []}, frozenset({"dog"}))
    scene = descriptions.Scene(("sofa", "cat"), ("dog",))
    found = ["sofa", "dog", "couch", "lamp"]
    exact = descriptions.score_nouns(found, scene, words)
    assert (exact["mentioned"], exact["hallucinated"], exact["covered"]) == (["sofa", "dog", "couch"], [], 1)
    scene = descriptions.Scene(("cat",), ("dog",))
    assert descriptions.score_nouns(["couch"], scene, words)["hallucinated"] == ["couch"]
    alike = descriptions.score_nouns(["couch"], scene, words, lambda one, other: True)
    assert (alike["hallucinated"], alike["covered"], alike["cognitive"]) == ([], 1, 1)


@pytest.mark.parametrize(
    ("text", "nouns"),
    [
        ("A dog can be seen.", ["A", "dog", "be", "seen"]),
        ("A can of soda", ["A", "can", "of", "soda"]),
        ("She paddles", ["She"]),
        ("two paddles", ["two", "paddles"]),
        ("to drink", ["to"]),
        ("next to light", ["next", "to", "light"]),
        ("a boat sailing", ["a", "boat"]),
    ],
)
def test_the_rules_leave_out_what_its_neighbors_make_a_verb(text, nouns):
    tokens = descriptions.tokens(text)
    assert [token for token, tag in zip(tokens, tagging.by_rule(tokens), strict=True) if tag and token != "."] == nouns
