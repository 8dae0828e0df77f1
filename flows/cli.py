"""The command `de`."""

from __future__ import annotations

import typer

from flows import (
    baseline_commands,
    data_commands,
    detector_commands,
    generation_commands,
    ldm_commands,
    run_commands,
    step_commands,
    study_commands,
    tune_command,
    up_command,
    version_commands,
    workspace_commands,
)
from flows.exits import GuardedGroup, quiet_logging

app = typer.Typer(
    name="de",
    cls=GuardedGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A data engine for object detection: draws new training images with their boxes, and measures whether they "
    "helped. Start with `de demo`. Every setting is in params.yaml; `--set section.key=value` changes one.",
    epilog="Exit codes: 0 done, 2 a mistake in what was given (one message), 1 a failure, 130 Ctrl-C, 143 SIGTERM.",
)

for name, function in {
    "demo": run_commands.demo,
    "init": workspace_commands.init,
    "status": workspace_commands.status,
    "doctor": workspace_commands.doctor,
    "import": data_commands.import_,
    "export": data_commands.export,
    "validate": data_commands.validate,
    "subset": data_commands.subset,
    "add-pictures": data_commands.add_pictures,
    "world": data_commands.world,
    "train-ldm": step_commands.train_ldm,
    "ldm-info": ldm_commands.ldm_info,
    "adapt-ldm": step_commands.adapt_ldm,
    "train-adapter": step_commands.train_adapter,
    "label": step_commands.label,
    "adapter-report": step_commands.adapter_report,
    "plan": generation_commands.plan,
    "generate": generation_commands.generate,
    "resume": generation_commands.resume,
    "verify": data_commands.verify,
    "review": step_commands.review,
    "compare": step_commands.compare,
    "train-detector": detector_commands.train_detector,
    "detect": detector_commands.detect,
    "study": study_commands.study,
    "tune": tune_command.tune,
    "pool": version_commands.pool,
    "record": version_commands.record,
    "versions": version_commands.versions,
    "checkout": version_commands.checkout,
    "verdict": version_commands.verdict,
    "app": run_commands.app,
    "up": up_command.up,
}.items():
    app.command(name)(function)
app.add_typer(baseline_commands.app, name="baseline")


def main() -> None:
    """Entry point of the installed command."""
    quiet_logging()
    app()


if __name__ == "__main__":
    main()
