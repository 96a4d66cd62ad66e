"""TPC-H's tables as Delta tables, and those of its queries that shuffle most, with the specification's validation
parameters (TPC Benchmark H, revision 3.0.1)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from pyspark.sql import SparkSession

from drivetrain.sink import Table, Txn

TABLES: Final = ("customer", "lineitem", "nation", "orders", "part", "partsupp", "supplier")

QUERIES: Final = {
    "q3": """
        SELECT l_orderkey, SUM(l_extendedprice * (1 - l_discount)) AS revenue, o_orderdate, o_shippriority
        FROM customer JOIN orders ON c_custkey = o_custkey JOIN lineitem ON l_orderkey = o_orderkey
        WHERE c_mktsegment = 'BUILDING' AND o_orderdate < DATE '1995-03-15' AND l_shipdate > DATE '1995-03-15'
        GROUP BY l_orderkey, o_orderdate, o_shippriority ORDER BY revenue DESC, o_orderdate LIMIT 10""",
    "q4": """
        SELECT o_orderpriority, COUNT(*) AS orders
        FROM orders LEFT SEMI JOIN lineitem ON l_orderkey = o_orderkey AND l_commitdate < l_receiptdate
        WHERE o_orderdate >= DATE '1993-07-01' AND o_orderdate < DATE '1993-10-01'
        GROUP BY o_orderpriority ORDER BY o_orderpriority""",
    "q9": """
        SELECT n_name AS nation, YEAR(o_orderdate) AS year,
               SUM(l_extendedprice * (1 - l_discount) - ps_supplycost * l_quantity) AS profit
        FROM part JOIN lineitem ON p_partkey = l_partkey JOIN supplier ON s_suppkey = l_suppkey
             JOIN partsupp ON ps_suppkey = l_suppkey AND ps_partkey = l_partkey
             JOIN orders ON o_orderkey = l_orderkey JOIN nation ON s_nationkey = n_nationkey
        WHERE p_name LIKE '%green%' GROUP BY nation, year ORDER BY nation, year DESC""",
    "q13": """
        SELECT orders, COUNT(*) AS customers
        FROM (SELECT c_custkey, COUNT(o_orderkey) AS orders
              FROM customer LEFT JOIN orders ON c_custkey = o_custkey AND o_comment NOT LIKE '%special%requests%'
              GROUP BY c_custkey)
        GROUP BY orders ORDER BY customers DESC, orders DESC""",
    "q16": """
        SELECT p_brand, p_type, p_size, COUNT(DISTINCT ps_suppkey) AS suppliers
        FROM partsupp JOIN part ON p_partkey = ps_partkey
        WHERE p_brand <> 'Brand#45' AND p_type NOT LIKE 'MEDIUM POLISHED%' AND p_size IN (49, 14, 23, 45, 19, 3, 36, 9)
              AND ps_suppkey NOT IN (SELECT s_suppkey FROM supplier WHERE s_comment LIKE '%Customer%Complaints%')
        GROUP BY p_brand, p_type, p_size ORDER BY suppliers DESC, p_brand, p_type, p_size""",
    "q18": """
        SELECT c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice, SUM(l_quantity) AS quantity
        FROM customer JOIN orders ON c_custkey = o_custkey JOIN lineitem ON o_orderkey = l_orderkey
        WHERE o_orderkey IN (SELECT l_orderkey FROM lineitem GROUP BY l_orderkey HAVING SUM(l_quantity) > 300)
        GROUP BY c_name, c_custkey, o_orderkey, o_orderdate, o_totalprice
        ORDER BY o_totalprice DESC, o_orderdate LIMIT 100""",
    "q21": """
        SELECT s_name, COUNT(*) AS waits
        FROM supplier JOIN lineitem AS one ON s_suppkey = one.l_suppkey JOIN orders ON o_orderkey = one.l_orderkey
             JOIN nation ON s_nationkey = n_nationkey
        WHERE o_orderstatus = 'F' AND one.l_receiptdate > one.l_commitdate AND n_name = 'SAUDI ARABIA'
              AND EXISTS (SELECT 1 FROM lineitem AS two
                          WHERE two.l_orderkey = one.l_orderkey AND two.l_suppkey <> one.l_suppkey)
              AND NOT EXISTS (SELECT 1 FROM lineitem AS two
                              WHERE two.l_orderkey = one.l_orderkey AND two.l_suppkey <> one.l_suppkey
                                    AND two.l_receiptdate > two.l_commitdate)
        GROUP BY s_name ORDER BY waits DESC, s_name LIMIT 100""",
}


def make(spark: SparkSession, work: Path, scale: float) -> dict[str, Table]:
    """The tables, each also as a view."""
    program = Path(sys.executable).with_name("tpchgen-cli")
    words = ["parquet", "--scale-factor", str(scale), "--output-dir", str(work / "parquet")]
    subprocess.run([str(program), *words, "--tables", ",".join(TABLES)], check=True, capture_output=True)
    tables = {}
    for name in TABLES:
        tables[name] = Table(spark, str(work / name))
        tables[name].append(spark.read.parquet(str(work / "parquet" / f"{name}.parquet")), Txn(name, 1), {}, {})
        tables[name].read().createOrReplaceTempView(name)
    return tables


def read_by(query: str, tables: dict[str, Table]) -> list[Table]:
    """The tables that a query names."""
    return [table for name, table in tables.items() if re.search(rf"\b{name}\b", QUERIES[query])]
