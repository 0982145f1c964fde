"""The real functions, killed between any two calls: the next run converges, and no session is doubled or left over."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import Cloud, wait_until
from product import sessions
from scene import BOTH, CREATE, DELETE, MUTATIONS, mutations, name_of, run, staged, what

product.need_a_build()

ANSWER = "cloudformation:Answer"


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> SimpleNamespace:
    return staged(cloud)


def dies(cloud: Cloud, function: str, payload: Any) -> None:
    answer = cloud.client("lambda").invoke(FunctionName=function, Payload=json.dumps(payload))
    assert "signal: SIGKILL" in json.loads(answer["Payload"].read())["errorMessage"]


@pytest.mark.parametrize("next_run", BOTH)
@pytest.mark.parametrize("which", BOTH)
def test_a_function_is_killed_between_any_two_calls_and_the_next_run_converges(
    cloud: Cloud, stack: SimpleNamespace, which: str, next_run: str
) -> None:
    scene, function = stack.scene, name_of(stack, which)
    scene.set()
    product.anew(cloud, function)
    before = len(cloud.calls())
    run(cloud, stack, which)
    calls = [c["call"] for c in cloud.calls()[before:]]
    assert scene.converged(), scene.ours()
    assert [c for c in calls if c in MUTATIONS].count(CREATE) == 2
    assert set(MUTATIONS) <= set(calls)
    # After a call is before the next one: the account does not know the difference. And before the first.
    for place, carried_out in [(0, False), *((n, True) for n in range(len(calls)))]:
        scene.set()
        product.anew(cloud, function)
        kept = scene.kept
        with cloud.faults({"do": "kill", "function": function, "after": place, "carried_out": carried_out}):
            dies(cloud, function, what(stack, which))
        run(cloud, stack, next_run)
        assert scene.converged(), (place, calls, scene.ours())
        assert kept in {s["id"] for s in scene.sessions()}, "what only has to be changed is not made anew"
        before = len(cloud.calls())
        run(cloud, stack, next_run)
        assert mutations(cloud, before) == [], "a second run finds nothing to do"


def test_a_removal_that_is_killed_between_any_two_calls_is_carried_on(cloud: Cloud, stack: SimpleNamespace) -> None:
    """Lambda calls a function again that died; CloudFormation waits meanwhile."""
    scene, function, client = stack.scene, name_of(stack, "reconcile"), cloud.client("cloudformation")
    mirrored = {"Type": "Custom::MirrorSessions", "Properties": {"ServiceToken": stack.out["ReconcileFunction"]}}
    body = json.dumps({"Resources": {"Sessions": mirrored}})

    def made_since(before: int) -> list[str]:
        return [c["call"] for c in cloud.calls()[before:]]

    def removed(*faults: dict[str, Any], answers: int = 1) -> list[str]:
        scene.clear()
        made = client.create_stack(StackName="only-sessions", TemplateBody=body)["StackId"]
        wait_until(lambda: product.status(cloud, made) == "CREATE_COMPLETE", 30, "the sessions")
        for name in ("drifted", "right"):  # two are enough
            for session in sessions(cloud, scene.enis[name]):
                scene.ec2.delete_traffic_mirror_session(TrafficMirrorSessionId=session["id"])
        assert len(scene.ours()) == 2
        before = len(cloud.calls())
        with cloud.faults(*faults):
            client.delete_stack(StackName="only-sessions")
            wait_until(lambda: product.status(cloud, made) != "DELETE_IN_PROGRESS", 30, "the removal")
            # Who died behind its answer is called again too, and would remove the next round's sessions.
            wait_until(lambda: made_since(before).count(ANSWER) >= answers, 30, "the last answer")
        assert product.status(cloud, made) == "DELETE_COMPLETE"
        assert scene.ours() == []
        assert scene.foreign_is_there()
        return made_since(before)

    calls = removed()
    assert calls.count(DELETE) == 2
    assert calls[-1] == ANSWER
    for place, call in enumerate(calls):
        kill = {"do": "kill", "function": function, "after": place, "carried_out": True}
        removed(kill, answers=2 if call == ANSWER else 1)
    # The answer itself: refused, and lost on its way back.
    removed({"do": "refuse", "call": ANSWER, "status": 500, "code": "InternalError"})
    removed({"do": "drop", "call": ANSWER, "carried_out": True})
