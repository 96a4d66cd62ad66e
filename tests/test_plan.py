"""The lineage graph as text (what a plan says of tables is in test_pipeline)."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from test_contracts import make_column, make_dataset, make_gold

from drivetrain.contracts import Conf, Settings
from drivetrain.plan import graph

SETTINGS = Settings("me", "/l", "/w", "UTC", 0, 1024, 10, "raw_unified_data", "", None, {})


def conf_of(datasets: list, gold: list = []) -> Conf:  # type: ignore[type-arg]  # noqa: B006
    return Conf(SETTINGS, {d.name: d for d in datasets}, {g.name: g for g in gold}, "local", Path("/conf"))


def test_a_small_graph() -> None:
    dataset = make_dataset(
        make_column("id", feed_name="ID"),
        make_column("day", transform="f(_file, ID)", sources=("_file", "ID")),
        name="orders",
    )
    first = make_gold("sales", "orders", columns=("day", "n"), lineage=(("day", (("orders", "day"),)), ("n", ())))
    second = make_gold("best", "sales", columns=("day",), lineage=(("day", (("sales", "day"),)),))
    assert graph(conf_of([dataset], [first, second])).splitlines() == [
        "flowchart LR",
        '  subgraph feed_orders["orders (feed)"]',
        '    feed_orders__ID["ID"]',
        "  end",
        '  subgraph orders["silver.orders"]',
        '    orders__id["id"]',
        '    orders__day["day"]',
        "  end",
        '  subgraph gold_sales["gold.sales"]',
        '    gold_sales__day["day"]',
        '    gold_sales__n["n"]',
        "  end",
        '  subgraph gold_best["gold.best"]',
        '    gold_best__day["day"]',
        "  end",
        "  feed_orders__ID --> orders__id",
        "  feed_orders__ID --> orders__day",
        "  orders__day --> gold_sales__day",
        "  gold_sales__day --> gold_best__day",
    ]


NODE = re.compile(r'    (feed_feed__\w+)\["([^"<]*)"\]')


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\x85"), min_size=1),
        min_size=1,
        max_size=6,
        unique=True,
    )
)
def test_any_feed_name_is_a_node_of_its_own(names: list[str]) -> None:
    """Names end no quote and open no tag, different names are different nodes, and each is shown as it is."""
    columns = [make_column(f"c{i}", feed_name=name) for i, name in enumerate(names)]
    text = graph(conf_of([make_dataset(*columns)]))
    nodes = [match for line in text.split("\n") if (match := NODE.fullmatch(line))]
    assert len({node[1] for node in nodes}) == len(names)
    shown = [
        node[2].replace("&lt;", "<").replace("&quot;", '"').replace("&num;", "#").replace("&amp;", "&")
        for node in nodes
    ]
    assert shown == names
    assert sum(" --> feed__c" in line for line in text.split("\n")) == len(names)
