"""Drivetrain: a company's raw feeds into tables that it can trust.

The chain, from left to right, a module each:

settings, findings, servers, odcs, sqltext -> conf
                                   the conf folder, read into the frozen models of contracts, every error at once
landing                            which files have arrived, and which of them cannot be read
source, jdbc                       read(dataset, intake): records of files or tables as they came, with where they stood
kafka                              records of a topic as they come, what of it is lost, how far a micro-batch went
bronze                             the immutable log; a load's records and its files are one commit
drift, silver, checks              typed, checked rows with an outcome each: one pass over the new records
quarantine, requeue                what could not be taken, with its reason and raw form, and the way back
gold                               each table from its SQL over one set of versions: written, audited, published
sink                               idempotent commits to Delta, and what its log says of earlier ones
pipeline                           the flow on one page
anomaly                            isolation forests: fitted on a sample, scored anywhere, explained, reviewed, watched
ops                                a row for each step, the ledger that adds up: what forecasts learn from
assess, plan, report, query        what is there, what would be done, what was done, and asking the tables
job, session, catalog, progress    arguments and locks, the only SparkSession, names for tables, talk on stderr
files                              where all of that stands: this machine, or HDFS
launch, submit, hadoop             from the command line to spark-submit; on YARN: staging, attaching, asking
package, runtime, archive, locking what YARN's nodes are given: archives that are the same each time
"""
