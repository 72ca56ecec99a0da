"""The oracle's hands: what it types is what the server stores, and every type is the error's."""

import json
import re

import pytest
from annotation_world import served

pytest.importorskip("starlette")
from rlhfv_jax.annotation import assignment, collected, imports, project
from rlhfv_jax.errors import UserError
from rlhfv_jax.miniature import captions, corpus, scoring, typist

NAMES = {"objects": "object", "numbers": "number", "attributes": "attribute", "positions": "position", "misc": "misc"}


def test_a_scene_is_found_again_by_its_questions_id_and_by_no_other():
    (asked, picture), *_ = typist.questions(3, "test", 2)
    assert asked["question_id"] == "miniature-3-test-0" and picture.startswith(b"\x89PNG")
    scene, place = typist.scene_of(asked["question_id"] + "/a/model")
    assert place == (3, "test", 0) and scene == corpus.scenes(3, "test", 1)[0]
    for other in ("17", "miniature-3-nowhere-0", "miniature-3-test-0x"):
        with pytest.raises(UserError, match="is no scene of the miniature"):
            typist.scene_of(other)


def test_what_the_oracle_types_over_http_is_true_of_the_scenes_and_typed_by_the_error(tmp_path):
    scenes = corpus.scenes(0, "prompts", 40)
    noisy = [
        captions.caption(scene, corpus.rng_of(0, "prompts", row, 1), captions.NOISY) for row, scene in enumerate(scenes)
    ]
    noisy[0], noisy[1] = captions.caption(scenes[0], corpus.rng_of(0, "prompts", 0, 1), captions.CLEAN), "no caption"
    with served(tmp_path) as world:
        identity = world.store.write(lambda c: assignment.add_project(c, "correction", project.new("correction")))
        asked = typist.questions(0, "prompts", 40)
        lines = []
        for (question, picture), text in zip(asked, noisy, strict=True):
            (tmp_path / question["image"]).write_bytes(picture)
            lines.append({"id": question["question_id"], "image": question["image"], "response": text, "prompt": "p"})
        (tmp_path / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert imports.run(world.store, identity, tmp_path / "items.jsonl", imports.Options()).added == 40
        done = typist.Typist(world.url, world.tokens["ada"]).work()
        rows = collected.finished(world.store.read, identity)
        assert sum(done.values()) == len(rows) == 40 and done["corrected"] > 20 and done["clean"] >= 1
        assert rows[1].verdict == "skipped"
        with pytest.raises(UserError, match="the server says"):
            typist.Typist(world.url, "no token")
    for row, scene in zip(rows, scenes, strict=True):
        if row.verdict == "skipped":
            continue
        assert not scoring.score(row.corrected, scene).errors
        wrong = scoring.score(row.response, scene).errors
        assert bool(wrong) == (row.verdict == "corrected")
        # A wrong object is wrong with its whole mention; any other error is one word.
        mentions = {m.object.start: m.attributes[-1].end for m in scoring.parse(row.response) if m.attributes}
        places = [(e.claim.start, mentions.get(e.claim.start, e.claim.end), e.claim.type) for e in wrong]
        for segment in row.segments:
            at = segment.change  # where the diff sees an insertion, a mention moved
            on = {kind for a, b, kind in places if a <= at.src1 and at.src0 <= b + 2 * (segment.op == "insert")}
            assert NAMES[segment.type] in on
        for start, end, _ in places:
            assert any(s.change.src0 < end and start < s.change.src1 for s in row.segments)
        assert not re.search(r"\s,\s,", row.corrected)
