"""Models as bytes: the same ones twice, and nothing else taken for them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from forests import forest, random_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.anomaly import grow
from drivetrain.anomaly.distribution import Bins
from drivetrain.anomaly.features import Feature, fit
from drivetrain.anomaly.forest import ARRAYS
from drivetrain.anomaly.modelfile import DIGEST, FIXED, Model, Reference, dump, load, name_of
from drivetrain.anomaly.reasons import range_of
from drivetrain.anomaly.thresholds import Threshold
from drivetrain.errors import DrivetrainError

KEY = b"a key from elsewhere"


@cache
def model(extended: bool = False) -> Model:
    given = {"price": [1.0, 2.5, None], "kind": ["a", "ü", None], "at": np.arange(3).astype("M8[s]"), "who": ["x"] * 3}
    features = (
        Feature("price"), Feature("kind", "category"), Feature("at", "timestamp", "hour"),
        Feature("who", "category", personal=True),
    )  # fmt: skip
    encoding = fit(features, given)
    ranges = tuple(range_of(column) for column in encoding.columns(given))
    references = (
        Reference(Bins(edges=(0.5, 1.5)), (1, 2, 3, 4)), Reference(Bins(levels=("a", "ü")), (1, 2, 0, 1)),
        Reference(Bins(edges=(0.0,)), (1, 0, 0)), Reference(Bins(levels=()), (3, 0)),
    )  # fmt: skip
    thresholds = {"": Threshold(0.6, 0.55, 0.65, 0.01, 1000), "group north": Threshold(0.7, 0.5, math.inf, 0.01, 9)}
    scores = Reference(Bins(edges=(0.4, 0.5)), (5, 5, 5, 0))
    card = {"made": "2026-01-01", "auroc": 0.9, "window": {"from": 1, "to": [2, None]}}
    return Model(forest(extended=extended), encoding, "v12", thresholds, ranges, references, scores, card)


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("extended", [False, True])
def test_what_is_read_is_what_was_written(extended: bool, key: bytes | None) -> None:
    made = model(extended)
    read = load(dump(made, key), key)
    for name in ARRAYS:
        mine, theirs = getattr(made.forest, name), getattr(read.forest, name)
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), name
    assert dataclasses.replace(read, forest=made.forest) == made
    assert (read.forest.features, read.forest.trees, read.forest.sample) == (4, 20, 64)
    assert read.references[0].array.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("key", [None, KEY])
def test_one_model_is_the_same_bytes(key: bytes | None) -> None:
    made = dump(model(), key)
    turned = dataclasses.replace(
        model(), card=dict(reversed(model().card.items())), thresholds=dict(reversed(model().thresholds.items()))
    )
    assert made == dump(model(), key) == dump(load(made, key), key) == dump(turned, key)
    assert name_of(made) == hashlib.sha256(made[:-DIGEST]).hexdigest()[:16]
    assert name_of(made) != name_of(dump(dataclasses.replace(model(), data_version="v13"), key))


def test_100_trees_stay_below_a_megabyte() -> None:
    big = dataclasses.replace(model(), forest=grow.isolation(random_rows(5000, 4)))
    assert len(dump(big)) < 400_000
    wide = dataclasses.replace(model(), forest=grow.extended(random_rows(5000, 4)))
    assert len(dump(wide)) < 1_000_000


def code(data: bytes, key: bytes | None = None) -> str:
    with pytest.raises(DrivetrainError) as refused:
        load(data, key)
    (problem,) = refused.value.problems
    assert problem.where == "anomaly model" and problem.fix
    return problem.code


@given(st.data(), st.sampled_from([None, KEY]))
@settings(max_examples=300)
def test_any_altered_byte_is_refused(data: st.DataObject, key: bytes | None) -> None:
    """In each part of the file, with the key and without."""
    good = dump(model(), KEY)
    length = FIXED.unpack_from(good)[2]
    ends = [0, 8, 12, 16, 16 + length, len(good) - 64, len(good) - 32, len(good)]
    part = data.draw(st.integers(0, len(ends) - 2))
    place = data.draw(st.integers(ends[part], ends[part + 1] - 1))
    bad = bytearray(good)
    bad[place] ^= data.draw(st.integers(1, 255))
    assert code(bytes(bad), key) == ("model-broken" if place < 8 else "model-altered")


@pytest.mark.parametrize("key", [None, KEY])
def test_cut_and_longer_files_are_refused(key: bytes | None) -> None:
    good = dump(model(), KEY)
    for bad in (b"", good[:7], good[:79], good[:80], good[:-1], good[1:], good + b"\0", good * 2):
        assert code(bad, key) in ("model-broken", "model-altered")


def test_only_the_keys_signature_is_taken() -> None:
    assert code(dump(model(), b"another"), KEY) == "model-signature"
    assert code(dump(model()), KEY) == "model-signature"
    with pytest.raises(DrivetrainError, match="it is not signed"):
        load(dump(model()), KEY)
    load(dump(model(), KEY))  # who has no key can read it, and trusts its hash only


def forged(change: Callable[[dict[str, Any]], object], version: int = 1, tail: bytes = b"") -> bytes:
    """What somebody without the key can make: other contents with the right hash."""
    good = dump(model())
    length = FIXED.unpack_from(good)[2]
    header = json.loads(good[16 : 16 + length])
    change(header)
    text = json.dumps(header).encode()
    content = struct.pack("<8sII", b"DTFOREST", version, len(text)) + text + good[16 + length : -64] + tail + bytes(32)
    return content + hashlib.sha256(content).digest()


def test_a_forged_model_needs_the_key() -> None:
    assert code(forged(lambda header: None), KEY) == "model-signature"
    assert load(forged(lambda header: None)) is not None


def test_a_newer_format_is_refused_as_such() -> None:
    assert code(forged(lambda header: header.clear(), version=2)) == "model-newer"
    assert code(forged(lambda header: None, version=0)) == "model-broken"


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.pop("card"),
        lambda header: header.update(card=[]),
        lambda header: header.update(data_version=3),
        lambda header: header["forest"].update(features=3),
        lambda header: header["forest"].update(features="4"),
        lambda header: header["forest"].update(sample=True),
        lambda header: header["forest"].update(trees=21),
        lambda header: header["arrays"].update(op=header["arrays"]["op"] - 1),
        lambda header: header["arrays"].update(op=-1),
        lambda header: header["arrays"].update(op=10**9),
        lambda header: header["encoders"].pop(),
        lambda header: header["encoders"][0].update(secret=1),
        lambda header: header["encoders"][0]["feature"].update(kind="picture"),
        lambda header: header["encoders"][0]["feature"].update(part="century"),
        lambda header: header["encoders"][0]["feature"].update(name="kind"),
        lambda header: header["encoders"][1].update(shares=[0.5]),
        lambda header: header["encoders"][1].update(shares=[0.5, 0]),
        lambda header: header["encoders"][1].update(rest=-1),
        lambda header: header["ranges"].pop(),
        lambda header: header["ranges"][0].update(quantiles=[1.0]),
        lambda header: header["references"].pop(),
        lambda header: header["references"][0].update(counts=[1]),
        lambda header: header["thresholds"][""].pop("low"),
        lambda header: header["thresholds"][""].update(low="much"),
    ],
)
def test_contents_that_are_no_model_are_refused(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(DrivetrainError) as refused:
        load(forged(change))
    assert refused.value.problems[0].code in ("model-broken", "forest-broken")


def test_more_bytes_than_arrays_are_refused() -> None:
    assert code(forged(lambda header: None, tail=b"\0" * 8)) == "model-broken"


def test_a_header_that_is_no_json_is_refused() -> None:
    content = struct.pack("<8sII", b"DTFOREST", 1, 4) + b"{,}!" + bytes(32)
    assert code(content + hashlib.sha256(content).digest()) == "model-broken"


def test_parts_that_do_not_fit_make_no_model() -> None:
    for change, said in (
        ({"ranges": model().ranges[:3]}, "4 features"), ({"references": ()}, "4 features"),
        ({"forest": forest(features=5)}, "5 columns"), ({"scores": Reference(Bins(edges=(0.4,)), (1,))}, "bins"),
    ):  # fmt: skip
        with pytest.raises(DrivetrainError, match=said):
            dataclasses.replace(model(), **change)


def test_what_json_does_not_know_is_no_card() -> None:
    for value in (math.nan, {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            dump(dataclasses.replace(model(), card={"x": value}))


def test_personal_categories_do_not_stand_in_the_file() -> None:
    secret = fit([Feature("who", "category", personal=True)], {"who": ["Ada Lovelace"]})
    made = dataclasses.replace(
        model(),
        forest=forest(features=1),
        encoding=secret,
        ranges=model().ranges[:1],
        references=model().references[:1],
    )
    assert b"Lovelace" not in dump(made)
