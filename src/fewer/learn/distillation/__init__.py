"""Dataset distillation: a large labelled set becomes a few synthetic pictures that train almost as well.

The way of a set: `source` (real pictures by class) → `loop.distill` (start, then one matching loss a step:
`gradient`, `distribution`, `trajectory`, …) → `distilled_set.DistilledSet` (one self-describing file) →
`scores` (the same recipe for random, distilled and full) → `audit`, `merge`, `page`.
"""
