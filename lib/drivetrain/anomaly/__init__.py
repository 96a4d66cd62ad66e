"""Isolation forests: fitted on a sample, scored on every executor, explained, and watched.

The chain, from left to right, a module each:

features                 columns of any type -> float64, and what a model expects of them
grow, flatten -> forest  trees by scikit-learn, or with oblique splits; as flat arrays, with scores in plain numpy
backtest                 which sort of forest finds the known anomalies
kernel -> native         all trees over blocks of rows, in numba; as object code that workers load without numba
scoring                  rows of any layout -> scores, the same in every bit wherever they are computed
thresholds               where to cut, how sure that is, the guard that keeps a surge from being held back, review
reasons                  which features isolated a flagged row, in words
distribution             counts in the reference's bins: drift of features and of scores
modelfile                all of it as signed bytes, without pickle

A driver imports scikit-learn in grow, and runs numba in a process of its own; a worker needs features, scoring and
modelfile, which import numpy, pyarrow and llvmlite only.
"""
