"""What a run will ask, train and cost, before a cent is spent; and the dated catalogue that this stands on.

    estimate = await estimating.estimate(config)

The plan is made by the stages' own code: a prompt that changes, changes the plan. Knows nothing of the terminal.
"""
