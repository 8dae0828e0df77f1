"""Generation: plan -> shard -> merge. The files on disk are the only state; any process may be killed at any moment.

`run.generate` does it all. For an orchestrator: `prepare`, `pending_shards`, `run_shard`, `merge` and `verify`.
"""
