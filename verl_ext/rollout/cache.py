"""A folder of responses that were generated once and are trained on many times.

Shards are safetensors files: each is written beside its place and renamed, so it is there whole or
not at all, and says in its header which responses it holds. ``manifest.json`` says by which models
and settings they were made, and no shard of another making comes into the folder.

Shapes: P prompt tokens, R response tokens, K candidates.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from verl_ext.files import parse_json
from verl_ext.rollout.rows import TopKRows

FORMAT = 1
MANIFEST, SHARDS, PARTIAL = "manifest.json", "*.safetensors", ".partial"
DAMAGED = (
    "put the file back, or delete it: a run at its start generates its responses again, a run that"
    " is resumed cannot"
)
"""Advice about a shard that cannot be read."""


@dataclass(frozen=True)
class CachedResponse:
    """One response as it was generated, and what a teacher said of it."""

    prompt_key: str
    """See ``prompt_key``."""
    sample: int
    """Number among the responses to this prompt, from 0."""
    prompt: NDArray[np.int32]
    """Token ids (P,)."""
    tokens: NDArray[np.int32]
    """Token ids (R,)."""
    log_probs: NDArray[np.float32] | None = None
    """Log-probs (R,) of the tokens in the rollout, where it reports them."""
    teacher: TopKRows | None = None
    """Rows (R, K) of the teacher."""
    teacher_sampled: NDArray[np.float32] | None = None
    """The teacher's log-probs (R,) of the tokens."""

    def first(self, tokens: int) -> "CachedResponse":
        """The same response as if its limit had been ``tokens``."""
        cut = slice(tokens)
        return CachedResponse(
            self.prompt_key,
            self.sample,
            self.prompt,
            self.tokens[cut],
            None if self.log_probs is None else self.log_probs[cut],
            None if self.teacher is None else self.teacher[cut],
            None if self.teacher_sampled is None else self.teacher_sampled[cut],
        )


def prompt_key(messages: Any) -> str:
    """Name of a prompt by its content, the same in every epoch, run and order of the data.

    Args:
        messages: turns, plain values alone.

    Raises:
        ValueError: they hold images or other things that are no text.
    """
    try:
        text = json.dumps(list(messages), sort_keys=True, ensure_ascii=False)
    except TypeError as error:
        raise ValueError(f"a prompt is not of text alone ({error})") from error
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


# ------------------------------------------------------------------------------------------ shards


class Place(NamedTuple):
    """Where a response is."""

    file: str
    row: int
    tokens: int
    """R."""


def write_shard(file: Path, responses: list[CachedResponse]) -> None:
    """Write responses, at least one, whole or not at all; all have the same optional parts."""
    lengths = [(len(one.prompt), len(one.tokens)) for one in responses]
    ends = np.cumsum(np.array([(0, 0), *lengths], dtype=np.int64), 0)
    columns: dict[str, list[Any]] = {
        "prompts": [one.prompt for one in responses],
        "tokens": [one.tokens for one in responses],
        "log_probs": [one.log_probs for one in responses],
        "teacher_ids": [getattr(one.teacher, "ids", None) for one in responses],
        "teacher_log_probs": [getattr(one.teacher, "log_probs", None) for one in responses],
        "teacher_sampled": [one.teacher_sampled for one in responses],
    }
    tensors = {
        name: np.concatenate(parts) for name, parts in columns.items() if parts[0] is not None
    }
    tensors |= {"prompt_ends": ends[:, 0].copy(), "ends": ends[:, 1].copy()}
    held = [(one.prompt_key, one.sample, len(one.tokens)) for one in responses]
    partial = file.with_name(file.name + PARTIAL)
    save_file(tensors, partial, metadata={"responses": json.dumps(held)})
    partial.replace(file)


@contextmanager
def _opened(file: Path | str) -> Any:
    try:
        with safe_open(file, framework="np") as shard:
            yield shard
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file} is damaged ({reason}): {DAMAGED}") from error


def read_held(file: Path) -> list[tuple[str, int, int]]:
    """Which responses a shard holds: key, sample, tokens.

    Raises:
        ValueError: the file is damaged; names it.
    """
    with _opened(file) as shard:
        rows = parse_json(shard.metadata()["responses"])
        held = [(str(k), int(s), int(n)) for k, s, n in rows]
        if shard.get_slice("ends").get_shape() != [len(held) + 1]:
            raise ValueError("its header and its content are of different responses")
        return held


def read_response(place: Place) -> CachedResponse:
    """Read one response, and no other of its shard.

    Raises:
        ValueError: the file is damaged; names it.
    """
    file, row, _ = place
    with _opened(file) as shard:
        key, sample, _ = parse_json(shard.metadata()["responses"])[row]
        names = set(shard.keys())

        def part(name: str, ends: str) -> Any:
            start, end = shard.get_slice(ends)[row : row + 2].tolist()
            return shard.get_slice(name)[start:end] if name in names else None

        ids = part("teacher_ids", "ends")
        rows = None if ids is None else TopKRows(ids, part("teacher_log_probs", "ends"))
        return CachedResponse(
            key,
            sample,
            part("prompts", "prompt_ends"),
            part("tokens", "ends"),
            part("log_probs", "ends"),
            rows,
            part("teacher_sampled", "ends"),
        )


# ------------------------------------------------------------------------------------------ folder


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """``{"format", "id", "made_by", "notes"}``; None where the folder holds no rollouts.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    file = folder / MANIFEST
    try:
        manifest = parse_json(file.read_bytes())
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']!r:.40}, this release reads {FORMAT}")
        found = {name: manifest[name] for name in ("format", "id", "made_by", "notes")}
        if not isinstance(found["id"], str) or not all(
            isinstance(found[name], dict) for name in ("made_by", "notes")
        ):
            raise ValueError("id is no text, or made_by or notes no object")
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error}): take another folder") from error


def difference(
    manifest: Mapping[str, Any], made_by: Mapping[str, str], notes: Mapping[str, str]
) -> str | None:
    """Say the first thing in which the rollouts of a folder are of another making.

    Args:
        manifest: of the folder.
        made_by: name -> value of all that a run's rollouts depend on.
        notes: name -> words for people about some of the values.
    """
    for name in dict.fromkeys([*made_by, *manifest["made_by"]]):
        theirs, ours = manifest["made_by"].get(name, "nothing"), made_by.get(name, "nothing")
        if theirs != ours:
            about = [f" ({n[name]})" if name in n else "" for n in (manifest["notes"], notes)]
            return f"{name}: {theirs}{about[0]}, here {ours}{about[1]}"
    return None


class RolloutCache:
    """Rollouts of one making, in one folder that every node sees.

    Args:
        folder: made, with its manifest, where there is none.
        made_by: see ``difference``; a folder of another making is for the caller to refuse.
        notes: see ``difference``.

    Raises:
        ValueError: see ``read_manifest``.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, str], notes: Mapping[str, str]):
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        if read_manifest(self.folder) is None:
            new = {"format": FORMAT, "id": uuid.uuid4().hex, "made_by": dict(made_by)}
            partial = self.folder / (MANIFEST + PARTIAL)
            partial.write_text(json.dumps(new | {"notes": dict(notes)}, indent=1))
            partial.replace(self.folder / MANIFEST)
        manifest = read_manifest(self.folder)
        assert manifest is not None
        self.id: str = manifest["id"]
        self._places: dict[tuple[str, int], Place] = {}

    def load(self) -> None:
        """Look which responses there are. Of two in one place the older one stands.

        Raises:
            ValueError: a shard is damaged; names it.
        """
        self._places = {}
        for file in sorted(self.folder.glob(SHARDS)):
            for row, (key, sample, tokens) in enumerate(read_held(file)):
                self._places.setdefault((key, sample), Place(str(file), row, tokens))

    def new_shard(self) -> str:
        """Beginning of the names of new shards, sorted behind all that are there."""
        last = max((file.name for file in self.folder.glob(SHARDS)), default="000000")
        return f"{int(last[:6]) + 1:06d}-{uuid.uuid4().hex[:8]}"

    def lacking(self, keys: Iterable[str], samples: int) -> list[str]:
        """Prompts without all of ``samples`` responses."""
        return [key for key in keys if any((key, i) not in self._places for i in range(samples))]

    def places(self, key: str, samples: int) -> list[Place]:
        """Where the responses 0 to ``samples`` - 1 to a prompt are.

        Raises:
            KeyError: one is not there.
        """
        return [self._places[key, sample] for sample in range(samples)]

    def tokens(self, keys: Iterable[str], samples: int) -> int:
        """Tokens of all responses to some prompts."""
        return sum(place.tokens for key in keys for place in self.places(key, samples))
