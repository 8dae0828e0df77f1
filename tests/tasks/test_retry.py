"""What is tried again: trouble that may pass, and nothing else."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from engine.errors import ConfigError, DatasetError, ModelError, RunConflict, RunFailed
from engine.generation.lock import Busy
from engine.generation.worker_process import ShardFailed, WorkerDied, WorkerNotStarted
from tasks.detector import compare_arms
from tasks.generate import draw_shard, merge_shards, plan_run
from tasks.retry import worth_retrying


@pytest.mark.parametrize(
    ("error", "again"),
    [
        *[(kind("x"), False) for kind in (ConfigError, DatasetError, ModelError, RunConflict, Busy, WorkerNotStarted)],
        *[(OSError(number, "x"), False) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)],
        (MemoryError(), False),
        *[(kind("x"), True) for kind in (RunFailed, WorkerDied, ShardFailed, RuntimeError)],
        (OSError(errno.EIO, "x"), True),
        (None, True),  # a crash that left no exception
    ],
)
def test_only_trouble_that_may_pass_is_tried_again(error, again):
    assert worth_retrying(None, None, SimpleNamespace(data=error)) is again


@pytest.mark.parametrize("task", [plan_run, draw_shard, merge_shards, compare_arms])
def test_tasks_are_tried_again_by_that_rule_and_remember_no_result(task):
    assert task.retry_condition_fn is worth_retrying and task.retries == 2
    assert task.persist_result is False and task.cache_key_fn is None
