"""The training loop on a small convolutional model and batches from (seed, step): quick, and every claim is exact."""

import dataclasses
import logging
import os
import signal
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.config import load_settings
from engine.detection import state as state_module
from engine.detection.journal import CURVE, PLOT, Journal, table
from engine.detection.samples import Batch
from engine.detection.schedule import OptimisationSettings
from engine.detection.state import remove_state
from engine.detection.training import fit
from engine.errors import ConfigError, ModelError, RunConflict, RunFailed

SETTINGS = OptimisationSettings(12, 0.01, 0.05, 1.0, False, save_every=3, ema_decay=0.9)


class Noise:
    """Batches of noise; sample i of a step is the same whichever part it is in."""

    def __init__(self, seed=0, batch_size=4, poisoned=None):
        self.seed, self.batch_size, self.poisoned = seed, batch_size, poisoned
        self.asked = []

    def batch(self, step, part=(0, 1)):
        self.asked.append(step)
        pixels = torch.randn(self.batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(self.seed * 999 + step))
        ids = [100 * step + i for i in range(self.batch_size)]
        if step == self.poisoned:
            pixels[-1] = torch.nan
        return Batch(pixels[part[0] :: part[1]], [], ids[part[0] :: part[1]], [])


class Model(nn.Module):
    """Two losses, means over the images; noise of its own unless `plain`, which has no batch statistics either."""

    def __init__(self, plain=False):
        super().__init__()
        torch.manual_seed(5)
        norm = nn.GroupNorm(2, 4) if plain else nn.BatchNorm2d(4)
        self.body, self.plain = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.SiLU(), nn.Conv2d(4, 1, 3)), plain
        self.unused = nn.Linear(2, 2)

    def forward(self, pixels, targets, texts):
        if not self.plain:
            pixels = pixels + 0.1 * torch.randn(pixels.shape)
        out = self.body(pixels).mean(dim=(1, 2, 3)) - pixels.mean(dim=(1, 2, 3))
        return {"square": out.square().mean(), "absolute": 0.1 * out.abs().mean()}


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(settings=SETTINGS, **kwargs):
    model = Model()
    record = fit(model, kwargs.pop("batches", Noise()), settings, "test", **kwargs)
    return weights(model), record.curve


def ended_after(steps, settings):
    """The weights in the middle of a training."""

    class Ended(Exception):
        pass

    class Short(Noise):
        def batch(self, step, part=(0, 1)):
            if step == steps:
                raise Ended
            return super().batch(step, part)

    model = Model()
    try:
        fit(model, Short(), settings, "test")
    except Ended:
        pass
    return weights(model)


@pytest.fixture(scope="module")
def unbroken():
    return trained()


def forked(work):
    """Run `work` in a child process; its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def test_step_and_cosine_schedules_after_a_linear_warm_up():
    step = OptimisationSettings(1000, 1.0, 0.0, 1.0, False, drop_at=0.8, warmup_steps=10)
    assert [step.rate_at(s) for s in (0, 4, 9, 799, 800, 999)] == pytest.approx([0.1, 0.5, 1, 1, 0.1, 0.1])
    cosine = OptimisationSettings(1000, 1.0, 0.0, 1.0, False, schedule="cosine", warmup_steps=0)
    assert [cosine.rate_at(s) for s in (0, 500, 999)] == pytest.approx([1, 0.5, 0], abs=1e-4)
    assert OptimisationSettings(100, 1.0, 0.0, 1.0, False, warmup_steps=500).rate_at(4) == 1  # a twentieth of the steps


def test_every_setting_of_the_adapter_arrives_and_detectors_have_the_rest_by_default():
    changes = ["schedule=cosine", "ema_decay=0.5", "warmup_steps=7", "save_every=9", "drop_at=0.5", "steps=30"]
    settings = load_settings(None, [f"adapter.{change}" for change in changes])
    options = OptimisationSettings.of(settings.adapter, 2.0)
    assert (options.schedule, options.ema_decay, options.warmup_steps, options.save_every) == ("cosine", 0.5, 7, 9)
    assert (options.drop_at, options.steps) == (0.5, 60)
    assert OptimisationSettings.of(settings.detector).schedule == "step"


def test_training_learns_leaves_the_random_state_alone_and_is_repeatable(unbroken):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    model = Model()
    torch.set_rng_state(before)
    fit(model, Noise(), SETTINGS, "test")
    assert torch.equal(torch.get_rng_state(), before) and same(weights(model), unbroken[0])
    long = trained(OptimisationSettings(150, 0.02, 0.0, 1.0, False))[1]
    assert long[-1][1] < 0.6 * long[0][1]


def test_averaged_weights_and_statistics_are_what_the_model_holds_in_the_end():
    raw = OptimisationSettings(6, 0.01, 0.05, 1.0, False)

    average = weights(Model())
    for k in range(6):  # the same training, ended after each step, gives the weights to be averaged
        states = ended_after(k + 1, raw)
        decay = min(0.9, (1 + k) / (10 + k))
        for name, value in states.items():
            average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
    kept, _ = trained(dataclasses.replace(raw, ema_decay=0.9))
    for name, value in average.items():
        torch.testing.assert_close(kept[name], value)
    assert kept["body.1.num_batches_tracked"] == 6


@pytest.mark.parametrize("stop", [2, 3, 7, 11])
def test_a_killed_training_goes_on_as_if_unbroken(stop, unbroken, tmp_path):
    class Deadly(Noise):
        def batch(self, step, part=(0, 1)):
            if step == stop:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().batch(step, part)

    path = tmp_path / "state.safetensors"
    assert os.WTERMSIG(forked(lambda: trained(batches=Deadly(), state=path))) == signal.SIGKILL
    result = trained(state=path, batches=(batches := Noise()))
    assert batches.asked[0] == stop // 3 * 3
    assert same(result[0], unbroken[0]) and result[1] == unbroken[1]


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("point", range(8))
def test_a_kill_while_saving_leaves_a_state_that_loads(kind, point, unbroken, tmp_path):
    """Ends the process before each rename, before each fsync, and with the new file written in part."""

    def killed():
        count = 0

        def guarded(function):
            def call(*args, **kwargs):
                nonlocal count
                if count == point:
                    if function is save_file:
                        args[1].write_bytes(b"\0" * 100)
                    os.kill(os.getpid(), kind)
                count += 1
                return function(*args, **kwargs)

            return call

        os.fsync, os.replace = guarded(os.fsync), guarded(os.replace)
        state_module.save_file = guarded(save_file)
        trained(state=path)

    path = tmp_path / "state.safetensors"
    assert os.WTERMSIG(forked(killed)) == kind
    result = trained(state=path, batches=(batches := Noise()))
    assert batches.asked[0] == (0 if point < 3 else 3)  # a save is four points, and the third puts it in place
    assert same(result[0], unbroken[0]) and result[1] == unbroken[1]
    remove_state(path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_state_is_not_used_and_the_one_before_it_is(unbroken, tmp_path, caplog):
    path = tmp_path / "state.safetensors"
    trained(state=path)
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        result = trained(state=path)
    assert "damaged" in caplog.text and "step 9" in caplog.text
    assert same(result[0], unbroken[0]) and result[1] == unbroken[1]
    for file in tmp_path.iterdir():
        file.write_bytes(content[:200])
    with pytest.raises(ModelError, match="Remove the file"):
        trained(state=path)


def test_a_state_of_other_settings_data_or_model_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    trained(state=path, digest="a")
    with pytest.raises(RunConflict, match="data and model was 'a', now 'b'"):
        trained(state=path, digest="b")
    with pytest.raises(RunConflict, match="seed was 0, now 1"):
        trained(state=path, digest="a", batches=Noise(seed=1))
    with pytest.raises(RunConflict, match="another model"):
        fit(Model(plain=True), Noise(), SETTINGS, "test", state=path, digest="a")
    tensors = load_file(path)
    assert {"model.body.0.weight", "average.body.1.running_mean", "optimizer.exp_avg.body.0.weight"} <= tensors.keys()


def test_a_loss_that_is_not_finite_names_step_and_images_and_leaves_the_last_state(unbroken, tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(RunFailed, match="nan at step 7.*700, 701, 702, 703.*state is kept"):
        trained(batches=Noise(poisoned=7), state=path)
    result = trained(state=path)
    assert same(result[0], unbroken[0]) and result[1] == unbroken[1]


def test_out_of_gpu_memory_says_what_to_lower(tmp_path):
    class Hungry(Model):
        def forward(self, pixels, targets, texts):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunFailed, match="Lower batch_size .now 4."):
        fit(Hungry(), Noise(), SETTINGS, "test")


def test_out_of_gpu_memory_leaves_the_last_state_and_names_step_and_images(unbroken, tmp_path):
    class Hungry(Model):
        def forward(self, pixels, targets, texts):
            self.calls = getattr(self, "calls", -1) + 1
            if self.calls == 7:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(pixels, targets, texts)

    path = tmp_path / "state.safetensors"
    with pytest.raises(RunFailed, match="at step 7 .*700, 701, 702, 703.*state is kept"):
        fit(Hungry(), Noise(), SETTINGS, "test", state=path)
    result = trained(state=path)
    assert same(result[0], unbroken[0]) and result[1] == unbroken[1]


def test_batches_prepared_ahead_in_another_process_change_nothing(unbroken):
    result = trained(loaders=1)
    assert same(result[0], unbroken[0]) and result[1] == unbroken[1]


def test_precision_does_not_leak_from_one_training_into_the_next(unbroken):
    rough = trained(dataclasses.replace(SETTINGS, bfloat16=True))
    assert not same(rough[0], unbroken[0]) and same(trained()[0], unbroken[0])
    assert "forward" not in vars(Model())


def test_the_journal_holds_every_loss_and_goes_on_after_a_stop(tmp_path):
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    trained(journal=Journal(plain))
    path = tmp_path / "state.safetensors"
    with pytest.raises(RunFailed):
        trained(batches=Noise(poisoned=7), state=path, journal=Journal(broken))
    trained(state=path, journal=Journal(broken))
    rows = (plain / CURVE).read_text().splitlines()
    assert rows[0] == "step,learning_rate,loss,square,absolute" and len(rows) == 13
    assert (broken / CURVE).read_bytes() == (plain / CURVE).read_bytes()
    assert (plain / PLOT).read_bytes().startswith(b"\x89PNG")
    assert table([(1, 0.1, {"loss": 1.0}), (2, 0.1, {"loss": 0.5, "mask": 0.2})]).splitlines()[1] == "1,0.1,1,"


def test_two_processes_train_as_one_does(tmp_path):
    """Each has half of every batch; weights and curve agree to float tolerance, and only the first writes."""
    settings = OptimisationSettings(12, 0.01, 0.05, 1.0, False, save_every=3, ema_decay=0.9)
    alone = Model(plain=True)
    curve = fit(alone, Noise(), settings, "test").curve
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank):
        where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({k: str(v) for k, v in where.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
        torch.set_num_threads(1)
        model, folder = Model(plain=True), tmp_path / str(rank)
        record = fit(model, Noise(), settings, "test", state=folder / "state.safetensors", journal=Journal(folder))
        save_file(weights(model), tmp_path / f"{rank}.safetensors")
        np.save(tmp_path / f"{rank}.npy", np.array(record.curve))
        with pytest.raises(ConfigError, match="does not divide by 2"):
            fit(model, Noise(batch_size=3), settings, "test")

    children = [os.fork() for _ in range(1)]
    if children[0] == 0:
        code = 1
        try:
            work(1)
            code = 0
        finally:
            os._exit(code)
    first = forked(lambda: work(0))
    assert first == 0 and os.waitpid(children[0], 0)[1] == 0
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.safetensors")
        for name, value in weights(alone).items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.load(tmp_path / f"{rank}.npy"), curve, rtol=1e-4)
    assert same(load_file(tmp_path / "0.safetensors"), load_file(tmp_path / "1.safetensors"))
    assert (tmp_path / "0" / CURVE).exists() and not (tmp_path / "1").exists()
