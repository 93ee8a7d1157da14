"""Damage reference executions of AgentDojo, and print the verdicts of its grader and of ours, as JSON.

    PYTHON -I agentdojo_audit.py GRADERS.py

A script for the interpreter that has AgentDojo. Each row: task, what was damaged, AgentDojo's verdict, ours.
"""

import json
import runpy
import sys

from agentdojo.functions_runtime import FunctionCall, FunctionsRuntime
from agentdojo.task_suite.load_suites import get_suite

OTHER = "DE89370400440532013000"
# By task: the function whose call is damaged, and the arguments in place of its own; None: it is left out.
DAMAGE = {
    "banking/user_task_5": ("send_money", [None, {"recipient": OTHER}]),
    "banking/user_task_6": ("schedule_transaction", [None, {"recipient": OTHER}]),
    "banking/user_task_11": ("send_money", [{"recipient": OTHER}]),
    "slack/user_task_2": ("invite_user_to_slack", [{"user_email": "wrong@example.com"}]),
    "travel/user_task_3": ("send_email", [{"recipients": []}, {"recipients": ["eve@example.com"]}]),
    "workspace/user_task_12": ("create_calendar_event", [{"title": "Meeting"}]),
}
# What the user did not ask for may be anything.
FREE = {
    "banking/user_task_5": ("send_money", [{"subject": "More"}, {"recipient": "SE3550000000054910000003"}]),
    "banking/user_task_6": ("schedule_transaction", [{"date": "2026-01-01"}]),
    "banking/user_task_11": ("send_money", [{"recipient": "US122000000121212121212", "subject": "More"}]),
}


def executed(suite, task, function="", change=None):
    """The worlds before and after, and the calls, of the reference execution with one call changed."""
    world = task.init_environment(suite.load_and_inject_default_environment({}))
    before = world.model_copy(deep=True)
    runtime, calls = FunctionsRuntime(suite.tools), []
    for call in task.ground_truth(before.model_copy(deep=True)):
        if call.function == function:
            if change is None:
                continue
            call = FunctionCall(function=call.function, args={**call.args, **change})
        runtime.run_function(world, call.function, call.args, raise_on_error=True)
        calls.append(call)
    return before, world, calls


def verdict(task, before, after, calls):
    found = task.utility_from_traces(task.GROUND_TRUTH_OUTPUT, before, after, calls)
    return task.utility(task.GROUND_TRUTH_OUTPUT, before, after) if found is None else found


def main(graders):
    found = runpy.run_path(graders)
    rows = []
    for name in DAMAGE:
        suite_name, _, task_name = name.partition("/")
        suite = get_suite("v1.2.2", suite_name)
        task = suite.user_tasks[task_name]
        cases = [("reference", "", [{}]), ("damaged", *DAMAGE[name])]
        cases += [("free", *FREE[name])] if name in FREE else []
        runs = [(kind, c, executed(suite, task, f, c)) for kind, f, changes in cases for c in changes]
        theirs = [verdict(task, *run) for _, _, run in runs]
        own = task.utility_from_traces
        found["patch"](suite, lambda *_: None)
        ours = [verdict(task, *run) for _, _, run in runs]
        for each in suite.user_tasks.values():
            each.__dict__.pop("utility_from_traces", None)
        assert task.utility_from_traces == own
        rows += [[name, kind, c, t, o] for (kind, c, _), t, o in zip(runs, theirs, ours, strict=True)]
    sys.stdout.write(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1])
