"""All methods of the table, in its order; a new one is a line here. Knows nothing of how they work."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.real.classifiers import Logistic, SelfTraining, SetFit
from benchmarks.real.method import Method
from benchmarks.real.product import PRODUCT

METHODS: Mapping[str, Method] = {method.name: method for method in (*PRODUCT, Logistic(), SelfTraining(), SetFit())}
