"""A cached response is read as it was written, whatever happened to the run that wrote it."""

import json

import numpy as np
import pytest

from verl_ext.rollout.cache import (
    MANIFEST,
    CachedResponse,
    RolloutCache,
    difference,
    prompt_key,
    read_manifest,
    read_response,
    write_shard,
)
from verl_ext.rollout.rows import TopKRows

MADE = {"model.path": "sha256:1", "temperature": "1"}


def response(key: str, sample: int = 0, length: int = 3, parts: bool = True) -> CachedResponse:
    """A response whose every number is another."""
    start = 100 * sample + 1000 * ord(key[0])
    tokens = np.arange(start, start + length, dtype=np.int32)
    values = tokens.astype(np.float32) / -7
    if not parts:
        return CachedResponse(key, sample, tokens[:2], tokens)
    rows = TopKRows(np.stack([tokens, tokens + 1], -1), np.stack([values, values - 1], -1))
    return CachedResponse(key, sample, tokens[:2], tokens, values, rows, values - 2)


def same(one: CachedResponse, other: CachedResponse) -> bool:
    def parts(response: CachedResponse) -> list:
        teacher = response.teacher
        rows = [None, None] if teacher is None else [teacher.ids, teacher.log_probs]
        given = [response.prompt, response.tokens, response.log_probs, response.teacher_sampled]
        return [part if part is None else part.tolist() for part in (*given, *rows)]

    named = one.prompt_key == other.prompt_key and one.sample == other.sample
    return named and parts(one) == parts(other)


@pytest.fixture
def cache(tmp_path) -> RolloutCache:
    return RolloutCache(tmp_path / "rollouts", MADE, {})


def fill(cache: RolloutCache, *responses: CachedResponse) -> str:
    """The shard's file after a batch was written."""
    file = cache.folder / f"{cache.new_shard()}-rank0.safetensors"
    write_shard(file, list(responses))
    cache.load()
    return str(file)


# ------------------------------------------------------------------------------------------- shards


@pytest.mark.parametrize("parts", [True, False])
def test_a_response_is_read_as_it_was_written(cache, parts):
    written = [response(key, i, 2 + i + ord(key) % 5, parts) for key in "abc" for i in (0, 1)]
    fill(cache, *written)
    places = [place for key in "abc" for place in cache.places(key, 2)]
    assert all(same(read_response(p), w) for p, w in zip(places, written, strict=True))
    assert [place.tokens for place in places] == [len(one.tokens) for one in written]
    assert cache.tokens("abc", 2) == sum(len(one.tokens) for one in written)


def test_a_lower_limit_takes_the_first_tokens_and_what_belongs_to_them(cache):
    whole = response("a", length=5)
    cut = whole.first(2)
    assert cut.tokens.tolist() == whole.tokens[:2].tolist()
    assert cut.prompt.tolist() == whole.prompt.tolist()
    assert len(cut.log_probs) == len(cut.teacher) == len(cut.teacher_sampled) == 2
    assert same(whole.first(9), whole)


def test_a_killed_write_leaves_nothing_that_counts(cache, monkeypatch):
    fill(cache, response("a"))

    def killed(*given, **named):
        given[1].write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("verl_ext.rollout.cache.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        fill(cache, response("b"))
    cache.load()
    assert cache.lacking("ab", 1) == ["b"]


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_damaged_shard_is_named(cache, kept):
    file = cache.folder / fill(cache, response("a", length=50))
    place = cache.places("a", 1)[0]
    file.write_bytes(file.read_bytes()[:kept])
    for read in (cache.load, lambda: read_response(place)):
        with pytest.raises(
            ValueError, match=r"is damaged .*: put the file back, or delete it"
        ) as e:
            read()
        assert str(file) in str(e.value)
        assert "\n" not in str(e.value)


def test_a_shard_of_something_else_is_named(cache):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, cache.folder / "000009-x-rank0.safetensors")
    with pytest.raises(ValueError, match=r"000009-x-rank0\.safetensors is damaged"):
        cache.load()


def test_a_shard_that_went_away_is_named(cache):
    file = cache.folder / fill(cache, response("a"))
    place = cache.places("a", 1)[0]
    file.unlink()
    with pytest.raises(ValueError, match="is damaged"):
        read_response(place)


# ------------------------------------------------------------------------------------------- folder


def test_a_prompt_lacks_responses_until_it_has_all(cache):
    fill(cache, response("a", 0), response("a", 1), response("b", 0))
    assert cache.lacking("abc", 1) == ["c"]
    assert cache.lacking("abc", 2) == ["b", "c"]
    fill(cache, response("b", 1))
    assert cache.lacking("abc", 2) == ["c"]
    with pytest.raises(KeyError):
        cache.places("c", 1)


def test_of_two_answers_the_older_one_stands(cache):
    first = response("a", length=3)
    files = [fill(cache, first), fill(cache, response("a", length=4))]
    assert files == sorted(files)
    assert same(read_response(cache.places("a", 1)[0]), first)


def test_a_folder_is_found_again_with_its_id(tmp_path, cache):
    fill(cache, response("a"))
    again = RolloutCache(tmp_path / "rollouts", MADE, {})
    again.load()
    assert again.id == cache.id
    assert again.lacking("a", 1) == []
    assert RolloutCache(tmp_path / "other", MADE, {}).id != cache.id


def test_what_differs_is_said(cache):
    manifest = read_manifest(cache.folder)
    assert difference(manifest, MADE, {}) is None
    other = MADE | {"model.path": "sha256:2"}
    said = difference(manifest, other, {"model.path": "/models/b"})
    assert said == "model.path: sha256:1, here sha256:2 (/models/b)"
    assert difference(manifest, MADE | {"k": "16"}, {}) == "k: nothing, here 16"
    assert difference(manifest, {"temperature": "1"}, {}) == "model.path: sha256:1, here nothing"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "5", json.dumps({"format": 1}), json.dumps({"format": 9})]
)
def test_a_manifest_that_cannot_be_used_is_named(cache, content):
    (cache.folder / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read .*: take another folder"):
        read_manifest(cache.folder)


def test_an_empty_folder_has_no_manifest(tmp_path):
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "none") is None


# ------------------------------------------------------------------------------------------ prompts


def test_a_prompt_is_known_by_its_content():
    turn = {"role": "user", "content": "1 + 1 = ? ü"}
    assert prompt_key([turn]) == prompt_key([dict(reversed(turn.items()))])
    others = [[turn, turn], [turn | {"content": "1 + 1 = ?"}], [turn | {"role": "system"}]]
    assert len({prompt_key(one) for one in ([turn], *others)}) == 4
    assert "_" not in prompt_key([turn])  # verl splits its keys there


def test_a_prompt_with_images_is_refused():
    with pytest.raises(ValueError, match="not of text alone"):
        prompt_key([{"role": "user", "content": [{"type": "image", "image": object()}]}])
