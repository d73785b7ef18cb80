"""Past one process: the stages' parts walked by the workers of a Ray cluster, with the same results.

`ray_executor` hands shards out, `worker` answers one, `quota_server` holds quotas and the budget for all. Ray is
imported by `ray_executor` and `worker`, which are imported where a config chose them. Knows nothing of what stages do.
"""
