"""Grids of runs over the same pipeline: arms, seeds, an axis; one journal and one set of trained models for all.

    grid.load_experiment(path)                 the TOML as settings, arms as overrides of one config
    runner.run_experiment(experiment, ...)     every cell that is not done yet, each a run of its own
    results.write_results(experiment)          one tidy table, the arms' means with intervals, Markdown and LaTeX

Knows nothing of servers or of the command line.
"""
