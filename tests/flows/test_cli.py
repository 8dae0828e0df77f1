"""What users and scripts rely on: names, exit codes, messages, where settings come from."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import engine.evaluation.compare
import engine.evaluation.train_detector
import engine.generation.run
from engine.data.world_folder import write_world
from engine.errors import DatasetError, RunFailed
from engine.ldm import embedded_folder
from engine.sections import Settings
from flows.cli import app

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "demo": ("--out", "--seed"),
    "init": ("--data", "--format", "--ldm", "--revision", "--domain", "--val", "--test", "--seed"),
    "status": ("--json",),
    "doctor": ("--json",),
    "import": ("--format",),
    "export": ("--format", "--all", "--ignore-regions", "--link", "--shard-images", "--shard-mb"),
    "validate": (),
    "subset": ("--data", "--out", "--images", "--percent", "--without", "--seed"),
    "world": ("--out",),
    "train-ldm": ("--out",),
    "adapt-ldm": ("--data", "--ldm", "--out"),
    "train-adapter": ("--data", "--ldm", "--out"),
    "adapter-report": ("--adapter", "--data", "--ldm", "--out", "--images", "--no-record", "--seed"),
    "plan": ("--data", "--ldm", "--adapter", "--out", "--images", "--store", "--seed", "--calibrate", "--json"),
    "generate": ("--data", "--ldm", "--adapter", "--out", "--images", "--workers", "--seed", "--store"),
    "resume": ("--workers", "--verify"),
    "verify": ("--store",),
    "review": ("--real", "--fiftyone", "--collect", "--ldm"),
    "compare": ("--real", "--generated", "--out", "--seeds"),
    "train-detector": ("--real", "--generated", "--out", "--seed"),
    "detect": ("PICTURES", "--detector", "--out", "--score"),
    "study": ("--real", "--out", "--target", "--sizes", "--detectors", "--times", "--fit", "--seeds"),
    "tune": ("--data", "--adapter", "--out", "--minutes", "--images"),
    "record": ("STAGE", "NAME"),
    "versions": ("--json",),
    "checkout": ("VERSION", "--force"),
    "verdict": ("VERSION", "--reason", "--comparison"),
    "app": ("--port",),
    "up": ("--port",),
}
GENERATE = ["generate", "--data", "d", "--adapter", "a", "--out", "o", "--images", "5"]


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def generate_gets(monkeypatch, tmp_path):
    """Replaces the engine's generate; the arguments it was called with."""
    calls = []

    def generate(*arguments, store):
        calls.append(arguments)
        return {"counts": {"planned": 5, "kept": 4, "dropped": {"no boxes": 1}, "failed": {}, "boxes": 9}}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine.generation.run, "generate", generate)
    return calls


def generate_that(monkeypatch, error: BaseException):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(engine.generation.run, "generate", fail)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name):
    result = run(name, "--help")
    assert result.exit_code == 0
    assert f"de {name}" in " ".join(result.output.split())
    for option in COMMANDS[name]:
        assert option in result.output


@pytest.mark.parametrize(
    "name", ["demo", "world", "adapt-ldm", "train-adapter", "adapter-report", "plan", "generate", "review", "compare"]
)
def test_commands_with_settings_take_params_and_set(name):
    assert all(option in run(name, "--help").output for option in ("--params", "--set"))


def test_help_loads_neither_torch_nor_prefect():
    code = "import sys; from flows.cli import app; app(['generate', '--help'], standalone_mode=False); "
    code += "sys.exit(bool({'torch', 'prefect', 'fiftyone', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_a_users_mistake_ends_with_2_and_one_message(monkeypatch):
    generate_that(monkeypatch, DatasetError("d/train.json: no such file. Check --data."))
    result = run(*GENERATE)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "d/train.json: no such file. Check --data.\n"


def test_a_failure_ends_with_1_and_one_message(monkeypatch):
    generate_that(monkeypatch, RunFailed("1 of 3 shards failed."))
    result = run(*GENERATE)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "1 of 3 shards failed.\n")


def test_the_unexpected_ends_with_1_and_says_where_the_traceback_is(monkeypatch):
    generate_that(monkeypatch, ZeroDivisionError("by nought\nand more"))
    result = run(*GENERATE)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "ZeroDivisionError: by nought" in result.stderr and "Traceback" not in result.stderr
    log = Path(result.stderr.rsplit("traceback is in ", 1)[1].strip().removesuffix("."))
    assert "ZeroDivisionError: by nought\nand more" in log.read_text() and "Traceback" in log.read_text()
    log.unlink()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_the_disk_or_the_network_refuses_is_one_message_without_a_traceback(monkeypatch, number):
    def full(folder):
        raise OSError(number, os.strerror(number), "/far/away")

    monkeypatch.setattr("engine.data.validate.validate_dataset", full)
    result = run("validate", "x")
    assert result.exit_code == 1
    assert os.strerror(number) in result.output and "/far/away" in result.output
    assert "traceback" not in result.output and result.output.count("\n") == 1


def test_words_of_a_dataset_give_the_terminal_no_orders(monkeypatch):
    generate_that(monkeypatch, DatasetError("class '\x1b]0;owned\x07\ud800' in\nd: größer"))
    assert run(*GENERATE).stderr == "class '\\x1b]0;owned\\x07\\ud800' in\nd: größer\n"


def test_ctrl_c_ends_with_130(monkeypatch):
    generate_that(monkeypatch, KeyboardInterrupt())
    result = run(*GENERATE)
    assert result.exit_code == 130 and "Traceback" not in result.stderr


def test_sigterm_ends_with_143_and_is_nobody_elses_business_afterwards(monkeypatch):
    def ends(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(engine.generation.run, "generate", ends)
    result = run(*GENERATE)
    assert (result.exit_code, result.stdout) == (143, "")
    assert result.stderr == "Stopped by SIGTERM. What was finished is kept; the same command goes on from there.\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        [*GENERATE, "--images", "0"],
        [*GENERATE, "--images", "many"],
        [*GENERATE, "--seed", "-1"],
        [*GENERATE, "--frobnicate"],
        ["dance"],
        [*GENERATE, "--set", "generation.step=5"],
        [*GENERATE, "--set", "generation.steps"],
        [*GENERATE, "--set", "generation.steps=0"],
        [*GENERATE, "--params", "nowhere.yaml"],
        ["review", "g", "--real", "r", "--fiftyone", "perhaps"],
        ["validate", "nowhere"],
        ["import", "nowhere", "out"],
    ],
)
def test_wrong_words_end_with_2(arguments, generate_gets):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr and "Traceback" not in result.stderr
    assert not generate_gets and not Path("out").exists()


def test_the_installed_command_keeps_the_exit_code(tmp_path):
    command = [str(Path(sys.executable).with_name("de")), "validate", "nowhere"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "There is no dataset folder nowhere. Check the path.\n"


def test_review_prints_what_the_gates_found_and_reads_features_with_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path / "real", 3, 2, 2)
    write_world(tmp_path / "drawn", 3, 1, 1, seed=9)
    (tmp_path / "drawn" / "train.json").rename(tmp_path / "drawn" / "annotations.json")
    result = run("review", "drawn", "--real", "real", "--fiftyone", "off", "--ldm", "world")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "Gates: 3 pass, 0 borderline, 0 fail.",
        "The batch: not judged (fewer than 10 generated images, sources or real images: too few to tell).",
        "3 of 3 images are accepted (0 rejected).",
    ]
    found = json.loads((tmp_path / "drawn" / "gates.json").read_text())
    assert found["features"]["resolution"] == 64 and all("train_similarity" in i["scores"] for i in found["images"])


def test_generate_passes_on_what_was_given(generate_gets):
    result = run(*GENERATE, "--ldm", "world", "--workers", "2", "--seed", "7", "--set", "generation.steps=9")
    assert result.exit_code == 0, result.output
    data, ldm, adapter, out, images, seed, settings, workers = generate_gets[0]
    assert [data, adapter, out] == [Path("d"), Path("a"), Path("o")]
    assert (ldm, images, seed, workers) == (str(embedded_folder()), 5, 7, 2)
    assert settings.generation.steps == 9
    assert result.stdout == "4 images with 9 boxes are in o (planned 5, dropped 1, failed 0).\n"


def test_images_may_be_left_out_for_variants(generate_gets):
    assert run(*GENERATE[:-2], "--set", "generation.variants_per_image=3").exit_code == 0
    assert generate_gets[0][4] is None and generate_gets[0][6].generation.variants_per_image == 3


def test_plan_passes_on_what_was_given_and_writes_the_figures_where_asked(monkeypatch, tmp_path):
    import engine.generation.preview
    import flows.plan_table

    calls = []

    def preview(*arguments):
        calls.append(arguments)
        return {"items": 5}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine.generation.preview, "preview", preview)
    monkeypatch.setattr(flows.plan_table, "plan_table", lambda report: f"a table of {report['items']} images")
    command = ["plan", *GENERATE[1:], "--ldm", "world", "--set", "generation.class_weights=[cat=2.5]"]
    result = run(*command, "--workers", "3", "--seed", "7", "--calibrate", "0", "--json", "figures.json")
    assert (result.exit_code, result.stdout) == (0, "a table of 5 images\n"), result.output
    source, *rest = calls[0]
    assert (source.data, source.ldm, source.adapter) == (Path("d"), str(embedded_folder()), Path("a"))
    assert source.settings.generation.class_weights == ("cat=2.5",) and rest == [Path("o"), 5, 7, 3, 0, None]
    assert json.loads(Path("figures.json").read_text()) == {"items": 5}
    assert run(*command).exit_code == 0 and calls[1][2:] == (5, 0, 1, None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json"]


def test_params_yaml_of_the_folder_counts_and_set_wins(generate_gets):
    Path("params.yaml").write_text("ldm: {id: some/model}\ngeneration: {steps: 11, jpeg_quality: 80}\n")
    Path("other.yaml").write_text("generation: {steps: 12}\n")
    run(*GENERATE)
    run(*GENERATE, "--set", "generation.steps=13", "--set", 'generation.domain=a"; touch PWNED; ${HOME} `touch PWNED`')
    run(*GENERATE, "--params", "other.yaml")
    first, second, third = (call[6].generation for call in generate_gets)
    assert (first.steps, first.jpeg_quality, generate_gets[0][1]) == (11, 80, "some/model")
    assert (second.steps, second.jpeg_quality) == (13, 80)
    assert (third.steps, third.jpeg_quality) == (12, 95)
    assert second.domain == 'a"; touch PWNED; ${HOME} `touch PWNED`' and not Path("PWNED").exists()


def test_what_the_models_folder_recommends_lies_below_params(generate_gets):
    Path("model").mkdir()
    Path("model/engine.json").write_text('{"settings": {"generation": {"steps": 20, "jpeg_quality": 70}}}')
    Path("params.yaml").write_text("generation: {steps: 21}\n")
    run(*GENERATE, "--ldm", "model")
    assert (generate_gets[0][6].generation.steps, generate_gets[0][6].generation.jpeg_quality) == (21, 70)


def test_adapter_report_passes_on_what_was_given_and_ends_with_one_line(monkeypatch, tmp_path):
    import engine.report.quality_page

    calls = []

    def report_quality(*arguments):
        calls.append(arguments)
        return {"real": {"map": None if len(calls) > 1 else 0.4321}, "data": {"images": 7}}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine.report.quality_page, "report_quality", report_quality)
    command = ["adapter-report", "--adapter", "a", "--data", "d", "--ldm", "world", "--out", "o"]
    first = run(*command, "--images", "9", "--no-record", "--seed", "4", "--set", "adapter.wanted_precision=0.9")
    assert (first.exit_code, first.output) == (0, "AP 43.2 on 7 validation images. Report: o/report.html\n")
    data, ldm, adapter, out, settings, *rest = calls[0]
    assert (data, ldm, adapter, out, rest) == (
        Path("d"), str(embedded_folder()), Path("a"), Path("o"), [9, 4, False],
    )  # fmt: skip
    assert settings.adapter.wanted_precision == 0.9
    second = run(*command)
    assert second.exit_code == 0 and second.output.startswith("no object") and calls[1][5:] == (50, 0, True)


def test_adapter_report_without_an_adapter_ends_with_2_and_one_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("adapter-report", "--adapter", "a", "--data", "d", "--ldm", "world", "--out", "o")
    assert result.exit_code == 2 and "d" in result.stderr and not (tmp_path / "o").exists()


def test_compare_writes_plot_data_and_one_line(monkeypatch, tmp_path):
    results = {
        "arms": {
            "real": {"map": [0.2, None], "map50": [0.4, 0.5]},
            "real+de": {"map": [0.3, 0.3], "map50": [0.5, 0.5]},
        },
        "delta": {"mean": 0.051, "ci95": [0.012, 0.09], "verdict": "helps"},
        "seeds": [0, 1],
    }
    monkeypatch.setattr(
        engine.evaluation.compare,
        "compare",
        lambda *_, further, ldm, version_of: (further, ldm) == ({"other": Path("o")}, None) and results,
    )
    out = tmp_path / "out"
    out.mkdir()
    result = run("compare", "--real", "r", "--generated", "g", "--out", str(out), "--arm", "other=o")
    assert result.exit_code == 0, result.output
    assert "+5.1 mAP (95 % interval +1.2 to +9.0): helps." in result.stdout
    assert str(out / "report.html") in result.stdout
    assert '"seed": 1,\n  "map": null' in (out / "plots.json").read_text()
    assert "settle" not in result.stdout
    for seeds, lasting, words in (
        (14, 0.0, "About 14 seeds per arm would settle it"),
        (None, 0.02, "More trainings would not settle"),
        (None, 0.001, "More than 1000 seeds per arm would be needed"),
        (None, 0.0, "More than 1000 seeds per arm would be needed"),
    ):
        open_question = {"mean": 0.01, "ci95": [-0.1, 0.1], "verdict": "cannot tell"}
        results["delta"] = {**open_question, "seeds_to_settle": seeds, "lasting_error": lasting}
        result = run("compare", "--real", "r", "--generated", "g", "--out", str(out), "--arm", "other=o")
        assert words in result.stdout.splitlines()[1]


@pytest.mark.parametrize("params", [(), ("--params", str(ROOT / "params" / "bccd.yaml"))])
def test_a_detector_to_keep_is_trained_with_the_settings_of_the_comparison(params, monkeypatch, tmp_path):
    seen = []

    def stop(*arguments, **_):
        seen.append(next(a for a in arguments if isinstance(a, Settings)).detector)
        raise RunFailed("seen")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine.evaluation.compare, "compare", stop)
    monkeypatch.setattr(engine.evaluation.train_detector, "train_detector", stop)
    pair = ("--real", "r", "--generated", "g", "--out", "o", *params)
    assert [run(command, *pair).exit_code for command in ("compare", "train-detector")] == [1, 1]
    assert seen[0] == seen[1]


def test_verify_names_what_is_wrong(tmp_path):
    result = run("verify", str(tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no plan.json" in result.stderr
    assert run("resume", str(tmp_path)).exit_code == 2
    assert run("verify", str(tmp_path), "--store", "s3:/one-slash").exit_code == 2


def test_verify_promises_nothing_where_there_is_no_plan(tmp_path):
    result = run("verify", str(tmp_path))
    assert result.exit_code == 2 and "holds no plan.json" in result.output
    assert "draws again" not in result.output


def test_plan_looks_whether_the_figures_can_be_written_before_it_draws(tmp_path):
    words = ["plan", *GENERATE[1:], "--ldm", "world", "--json", str(tmp_path / "none" / "plan.json")]
    result = run(*words)
    assert result.exit_code == 2 and "there is no folder" in result.output


def test_world_import_and_validate_work_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("world", "--out", "w", "--train", "6", "--val", "2", "--test", "2", "--seed", "3").exit_code == 0
    assert run("validate", "w").exit_code == 0
    imported = run("import", "w", "copy")
    assert imported.exit_code == 0 and "10 images" in imported.stdout
    os.remove("copy/images/" + sorted(os.listdir("copy/images"))[0])
    broken = run("validate", "copy")
    assert broken.exit_code == 2 and "error" in broken.stdout and "cannot be used" in broken.stderr


def test_export_says_what_it_wrote_and_never_overwrites(tmp_path):
    data, out = str(tmp_path / "data"), str(tmp_path / "out")
    assert run("world", "--out", data, "--train", "2", "--val", "1", "--test", "1").exit_code == 0
    result = run("export", data, out, "--format", "yolo")
    assert result.exit_code == 0 and "train: 2 images" in result.stdout and "test: 1 images" in result.stdout
    result = run("export", data, out, "--format", "yolo")
    assert (result.exit_code, result.stdout) == (2, "") and "never overwrites" in result.stderr
    assert run("export", data, str(tmp_path / "else"), "--format", "csv").exit_code == 2
