"""`semievol plan`: what a config will ask, train and cost, before a cent is spent.

    demand.py       what was asked and trained, counted row by row
    answer_key.py   what a made-up model answers
    dry_provider.py a provider that answers out of thin air and counts
    prefix_cache.py which prompts begin as an earlier one did
    dry_run.py      the pipeline itself on a sample of the data, over dry providers
    bill.py         demand times prices: low, expected, high
    duration.py     how long the requests take
    compare.py      the same demand at other vendors
    estimate.py     all of it: a config in, an `Estimate` out
    spent.py        what a run has paid, from its journal and its models, beside the plan

The plan is made by the stages' own code: a prompt that changes, changes the plan. Knows nothing of the terminal.
"""

from semievol_api.planning.estimate import Estimate, estimate, refuse_too_dear, worth_planning
from semievol_api.planning.spent import Spent, spent_by

__all__ = ["Estimate", "Spent", "estimate", "refuse_too_dear", "spent_by", "worth_planning"]
