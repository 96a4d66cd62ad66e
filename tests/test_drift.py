"""How headers fit contracts."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_contracts import make_column, make_dataset

from drivetrain.contracts import NAME
from drivetrain.drift import column_name, fit, new_columns

WANTED = ("ORDER_ID", "Line", "Straße", "qty", "note")
DATASET = make_dataset(
    make_column("order_id", feed_name="ORDER_ID"),
    make_column("line", feed_name="Line", aliases=("position", "pos")),
    make_column("street", feed_name="Straße"),
    make_column("qty"),
    make_column("note", optional=True),
    key=("order_id",),
    identity=("order_id",),
    sequence=None,
)
CASES = st.sampled_from([str, str.upper, str.lower, str.title])


@st.composite
def headers(draw: Any) -> tuple[list[str], dict[str, int]]:
    """A header with the wanted columns somewhere in it, in any case, and where each is."""
    strangers = draw(st.lists(st.sampled_from(["x", "extra", "Zeile", "9", "ä b"]), unique=True))
    names = draw(st.permutations([*WANTED, *strangers]))
    shown = {"Line": draw(st.sampled_from(["Line", "position", "pos"]))}
    # ß has no capital that goes back to it
    header = [name if name == "Straße" else draw(CASES)(shown.get(name, name)) for name in names]
    return header, {name: names.index(name) for name in WANTED}


@given(headers())
def test_every_column_is_found_wherever_it_stands(made: tuple[list[str], dict[str, int]]) -> None:
    header, where = made
    fitted = fit(header, DATASET)
    assert fitted.positions == where
    assert (fitted.missing, fitted.absent, fitted.reason) == ((), (), None)
    assert fitted.unknown == tuple(name for i, name in enumerate(header) if i not in where.values())


@given(headers(), st.sets(st.sampled_from(WANTED), min_size=1))
def test_what_is_gone_is_missing_or_absent(made: tuple[list[str], dict[str, int]], gone: set[str]) -> None:
    header, where = made
    left = [name for i, name in enumerate(header) if i not in {where[name] for name in gone}]
    fitted = fit(left, DATASET)
    assert set(fitted.missing) == gone - {"note"}
    assert fitted.absent == (("note",) if "note" in gone else ())
    assert {name: left[i].lower() for name, i in fitted.positions.items()} == {
        name: header[i].lower() for name, i in where.items() if name not in gone
    }
    assert (fitted.reason is None) == (gone == {"note"})


def test_the_contracts_own_name_goes_before_an_alias() -> None:
    fitted = fit(["pos", "ORDER_ID", "line", "straße", "QTY"], DATASET)
    assert fitted.positions["Line"] == 2
    assert fitted.unknown == ("pos",)


@pytest.mark.parametrize(
    ("unknown", "hint"),
    [("quantity_", None), ("qtty", "qtty"), ("QTY_", "qty_"), ("wert", "wert")],
)
def test_a_rename_is_suspected(unknown: str, hint: str | None) -> None:
    reason = fit(["ORDER_ID", "line", "Straße", unknown], DATASET).reason
    assert reason and reason.startswith("column qty is missing from the header")
    assert f"renamed to {hint or unknown}?" in reason, "one is missing and one is new"


def test_no_rename_is_made_up() -> None:
    reason = fit(["ORDER_ID", "line", "Straße", "wert", "farbe"], DATASET).reason
    assert reason == "column qty is missing from the header"


def test_sources_of_an_optional_transform_may_be_absent() -> None:
    total = make_column("total", transform="NET + TAX", sources=("NET", "TAX"), optional=True)
    fitted = fit(["id"], make_dataset(make_column("id"), total, sequence=None, identity=("id",)))
    assert (fitted.absent, fitted.missing) == (("NET", "TAX"), ())


@given(st.text(min_size=1))
def test_column_names_are_names(text: str) -> None:
    assert NAME.fullmatch(column_name(text))


@pytest.mark.parametrize(
    ("feed", "name"), [("Order ID", "order_id"), ("2nd", "c_2nd"), ("__x__", "x"), ("a#2", "a_2"), ("x" * 80, "x" * 63)]
)
def test_column_names(feed: str, name: str) -> None:
    assert column_name(feed) == name


def test_new_columns_take_no_name_twice() -> None:
    dataset = make_dataset()
    found = new_columns(["Colour", "COLOUR", "Id", "_file", "valid to", "size"], dataset)
    assert found == {"colour": "Colour", "valid_to": "valid to", "size": "size", "file": "_file"}
    assert not set(found) & set(dataset.silver_types)
    assert all(re.fullmatch("[a-z_]+", name) for name in found)
