"""The plugin that `de app` gives to FiftyOne's App: operators that decide, ask and export.

Only the App's process loads it, by `register`. FiftyOne is imported there and not before: the import connects to a
database.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from engine.curation.requests import LESS, MORE
from engine.errors import RunFailed, UserError
from tasks import app_decisions, app_requests
from tasks.app_queues import REVIEWER

log = logging.getLogger(__name__)
JOURNAL = "decisions"  # the operators' store of what can be taken back


@dataclass(frozen=True)
class Action:
    """An operator.

    Attributes:
        run: does it, given the App's context; returns what is said about it.
        choice: a parameter to ask for: its name, its label, the values that it may have.
        button: whether it has one above the grid.
    """

    name: str
    label: str
    icon: str
    run: Callable[[object], str]
    choice: tuple[str, str, tuple[str, ...]] | None = None
    button: bool = False


def _selected(ctx) -> list[str]:
    """Ids of the selected samples; of the open one where none is selected."""
    return ctx.selected or ([ctx.current_sample] if ctx.current_sample else [])


def _reviewer() -> str | None:
    return os.environ.get(REVIEWER) or None


def _accept(ctx) -> str:
    return app_decisions.accept(ctx.dataset, _selected(ctx), ctx.store(JOURNAL), _reviewer())


def _reject(ctx) -> str:
    return app_decisions.reject(ctx.dataset, _selected(ctx), ctx.params.get("reason"), ctx.store(JOURNAL), _reviewer())


def _undo(ctx) -> str:
    return app_decisions.undo(ctx.dataset, _selected(ctx), ctx.store(JOURNAL), _reviewer())


def _accept_passing(ctx) -> str:
    return app_decisions.accept_passing(ctx.dataset, ctx.view, ctx.store(JOURNAL), _reviewer())


def _more(ctx) -> str:
    return app_requests.request(ctx.dataset, _selected(ctx), MORE)


def _less(ctx) -> str:
    return app_requests.request(ctx.dataset, _selected(ctx), LESS)


def _export(ctx) -> str:
    import fiftyone

    return app_requests.send_to_export(fiftyone, ctx.dataset, ctx.params.get("format"))


ACTIONS = (
    Action("accept_selected", "Accept selected", "check", _accept, button=True),
    Action(
        "reject_selected",
        "Reject selected",
        "close",
        _reject,
        ("reason", "Why", app_decisions.REASONS),
        button=True,
    ),
    Action("undo_decision", "Undo the last decision on the selected", "undo", _undo, button=True),
    Action("accept_passing", "Accept all of this view that pass the gates", "done_all", _accept_passing),
    Action("more_like_this", "More like this", "add", _more),
    Action("less_like_this", "Less like this", "remove", _less),
    Action("export_accepted", "Export the accepted", "output", _export, ("format", "Format", app_requests.FORMATS)),
)


def register(plugin) -> None:
    """Called by FiftyOne with what operators are registered on."""
    import fiftyone.operators as foo
    from fiftyone.operators import types

    for action in ACTIONS:
        plugin.register(_operator(foo, types, action))


def _operator(foo, types, action: Action) -> type:
    """FiftyOne's class of an action. It has only the methods that the action needs: FiftyOne looks which there are."""

    def config(self):
        return foo.OperatorConfig(name=action.name, label=action.label, icon=action.icon)

    def resolve_input(self, ctx):
        name, label, values = action.choice
        inputs = types.Object()
        inputs.enum(name, list(values), label=label, required=True)
        return types.Property(inputs, view=types.View(label=action.label))

    def resolve_placement(self, ctx):
        # In the header: among the actions of the grid a selection hides them in a menu. An icon is named without slash.
        button = types.Button(label=action.label, icon=action.icon, prompt=action.choice is not None)
        return types.Placement(types.Places.HEADER_ACTIONS, button)

    def execute(self, ctx):
        done, message = _run(action, ctx)
        ctx.ops.notify(message, variant="success" if done else "error")
        if done:  # what was decided leaves the queue; `reload_samples` would show it on
            ctx.ops.clear_selected_samples()
            ctx.ops.reload_dataset()
        return {"done": done, "message": message}

    members = {"config": property(config), "execute": execute}
    if action.choice:
        members["resolve_input"] = resolve_input
    if action.button:
        members["resolve_placement"] = resolve_placement
    return type(action.name, (foo.Operator,), members)


def _run(action: Action, ctx) -> tuple[bool, str]:
    """Whether it was done, and what to say: a mistake is a message in the App, not a traceback."""
    try:
        return True, action.run(ctx)
    except (UserError, RunFailed) as error:
        return False, str(error)
    except OSError as error:
        log.exception("%s failed", action.name)
        return False, f"It could not be written: {error.strerror}. Is there space, and may you write there?"
