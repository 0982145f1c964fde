"""The real functions, with everything that can go wrong between them and the account: each run or the next converges,
no session is doubled or left over, and nobody else's is touched (`conftest.Cloud.stop` looks into the account's log).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import product
import pytest
from conftest import Cloud, wait_until
from scene import BASE, BOTH, CREATE, DELETE, MODIFY, MUTATIONS, mutations, name_of, run, staged, what

product.need_a_build()


@pytest.fixture(scope="module")
def stack(cloud: Cloud) -> SimpleNamespace:
    return staged(cloud)


# -- answers that are none -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "fault"),
    [
        ("attach", {"do": "refuse", "times": 2}),
        ("reconcile", {"do": "refuse"}),
        ("attach", {"do": "refuse", "status": 429, "code": "ThrottlingException"}),
        ("reconcile", {"do": "refuse", "status": 500, "code": "InternalError"}),
        ("attach", {"do": "refuse", "status": 503, "code": "Unavailable"}),
        ("reconcile", {"do": "drop"}),
        ("attach", {"do": "drop", "carried_out": True}),
        ("reconcile", {"do": "drop", "carried_out": True}),
        ("attach", {"do": "cut"}),
        ("reconcile", {"do": "slow", "seconds": 0.3}),
    ],
    ids=lambda value: " ".join(str(v) for v in value.values()) if isinstance(value, dict) else str(value),
)
def test_a_run_gets_over_what_passes(cloud: Cloud, stack: SimpleNamespace, which: str, fault: dict[str, Any]) -> None:
    """Each kind of call goes wrong, and the run converges all the same: it asks again, with the same token. Both
    functions make their calls by the same code, so not each has to see each."""
    scene = stack.scene
    scene.set()
    kinds = ("ec2:DescribeInstances", "ec2:DescribeNetworkInterfaces", "ec2:DescribeTrafficMirrorSessions", *MUTATIONS)
    with cloud.faults(*({**fault, "call": kind} for kind in kinds)):
        answer = run(cloud, stack, which)
    assert answer["failed"] == []
    assert answer.get("batchItemFailures", []) == []
    assert scene.converged(), scene.ours()


def test_a_change_without_an_answer_is_repeated_after_its_time_and_made_once(
    cloud: Cloud, stack: SimpleNamespace
) -> None:
    scene = stack.scene
    scene.set()
    with cloud.faults({"do": "hang", "carried_out": True, "call": CREATE}):
        answer = run(cloud, stack, "attach")
    assert answer["failed"] == []
    assert scene.converged(), scene.ours()


def test_a_listing_without_an_answer_is_asked_for_again_after_its_time(cloud: Cloud, stack: SimpleNamespace) -> None:
    scene = stack.scene
    scene.set()
    with cloud.faults({"do": "hang", "call": "ec2:DescribeTrafficMirrorSessions"}):
        answer = run(cloud, stack, "attach")
    assert answer["failed"] == answer["batchItemFailures"] == []
    assert scene.converged(), scene.ours()


def test_what_does_not_pass_is_told_and_the_rest_goes_on(cloud: Cloud, stack: SimpleNamespace) -> None:
    scene = stack.scene
    scene.set()
    with cloud.faults({"do": "refuse", "times": 0, "call": CREATE}):
        answer = run(cloud, stack, "attach")
        assert {f["eni"] for f in answer["failed"]} == {scene.enis["bare"], scene.enis["shared"]}
        assert all("RequestLimitExceeded" in f["error"] for f in answer["failed"])
        failed = [f["itemIdentifier"] for f in answer["batchItemFailures"]]
        assert failed == [f"message-{list(scene.enis).index(n)}" for n in ("bare", "shared")]
        assert [name for name, _, _ in scene.ours()] == ["drifted", "right"]
    run(cloud, stack, "reconcile")
    assert scene.converged(), scene.ours()


@pytest.mark.parametrize("which", BOTH)
def test_nothing_is_changed_by_who_sees_nothing(cloud: Cloud, stack: SimpleNamespace, which: str) -> None:
    """A listing that fails for good is no empty listing."""
    scene = stack.scene
    scene.set()
    before, begun = scene.ours(), len(cloud.calls())
    for kind in ("DescribeInstances", "DescribeNetworkInterfaces", "DescribeTrafficMirrorSessions"):
        with cloud.faults({"do": "refuse", "times": 0, "call": f"ec2:{kind}", "status": 403, "code": "AuthFailure"}):
            answer = cloud.invoke(name_of(stack, which), what(stack, which))
        if which == "attach":
            assert len(answer["batchItemFailures"]) == len(scene.instances)
        else:
            assert "AuthFailure" in answer["errorMessage"]
    assert scene.ours() == before
    assert mutations(cloud, begun) == []


def test_small_pages_are_all_read(cloud: Cloud, stack: SimpleNamespace) -> None:
    scene = stack.scene
    scene.set()
    before = len(cloud.calls())
    with cloud.faults({"do": "page", "items": 5, "times": 0, "call": "ec2:Describe*s"}):
        run(cloud, stack, "reconcile")
    assert scene.converged(), scene.ours()
    asked = [c["call"] for c in cloud.calls()[before:]]
    for kind in ("ec2:DescribeNetworkInterfaces", "ec2:DescribeTrafficMirrorSessions"):
        assert asked.count(kind) >= 2, f"the scene has more than one page of {kind}"


# -- others at work ------------------------------------------------------------------------------------------------


def meanwhile(cloud: Cloud, stack: SimpleNamespace, which: str, call: str, does: Any) -> Any:
    """Runs a function, holds its first such call, lets somebody else do something, and lets go."""
    with ThreadPoolExecutor(1) as pool:
        with cloud.faults({"do": "hold", "call": call}) as look:
            running = pool.submit(run, cloud, stack, which)
            wait_until(lambda: look()[0]["holding"], 20, f"{which} to come to {call}")
            does()
        return running.result()


@pytest.mark.parametrize("which", BOTH)
def test_a_session_that_someone_deletes_before_it_is_changed_is_made_anew(
    cloud: Cloud, stack: SimpleNamespace, which: str
) -> None:
    scene = stack.scene
    scene.set()
    gone = scene.kept
    delete = scene.ec2.delete_traffic_mirror_session
    answer = meanwhile(cloud, stack, which, MODIFY, lambda: delete(TrafficMirrorSessionId=gone))
    assert answer["failed"] == []
    assert scene.converged(), scene.ours()


@pytest.mark.parametrize("which", BOTH)
def test_a_session_that_someone_deletes_before_we_do_is_deleted(
    cloud: Cloud, stack: SimpleNamespace, which: str
) -> None:
    scene = stack.scene
    scene.set()
    (gone,) = [s["id"] for s in scene.sessions() if s["eni"] == scene.enis["unselected"]]
    delete = scene.ec2.delete_traffic_mirror_session
    answer = meanwhile(cloud, stack, which, DELETE, lambda: delete(TrafficMirrorSessionId=gone))
    assert answer["failed"] == []
    assert scene.converged(), scene.ours()


@pytest.mark.parametrize("which", BOTH)
def test_a_number_that_someone_takes_before_us_is_left_to_them(
    cloud: Cloud, stack: SimpleNamespace, which: str
) -> None:
    scene = stack.scene
    scene.set()
    taken: list[str] = []

    def take() -> None:
        # Whichever of the two it is that is being made: both numbers are taken.
        taken.extend([scene.add("bare", BASE, ours=False), scene.add("shared", BASE + 1, ours=False)])

    try:
        answer = meanwhile(cloud, stack, which, CREATE, take)
        assert answer["failed"] == []
        # "shared" has three foreign ones by now.
        assert [(n, number) for n, number, _ in scene.ours()] == [
            ("bare", BASE + 1),
            ("drifted", BASE),
            ("right", BASE),
        ]
        assert scene.enis["shared"] in {s["eni"] for s in answer["skipped"] if s["reason"] == "interface_full"}
        assert set(taken) <= {s["id"] for s in scene.sessions()}
    finally:
        for session in taken:
            scene.ec2.delete_traffic_mirror_session(TrafficMirrorSessionId=session)


@pytest.mark.parametrize("which", BOTH)
def test_an_interface_that_goes_before_its_session_comes_is_skipped(
    cloud: Cloud, stack: SimpleNamespace, which: str
) -> None:
    scene = stack.scene
    scene.set()
    scene.add("bare", BASE, ours=True)
    scene.add("shared", BASE + 1, ours=True)
    brief = cloud.run_instance(**product.tagged())
    scene.instances["brief"] = brief
    try:
        end = scene.ec2.terminate_instances
        answer = meanwhile(cloud, stack, which, CREATE, lambda: end(InstanceIds=[brief["InstanceId"]]))
        assert {"eni": product.interface_of(brief), "reason": "interface_gone"} in answer["skipped"]
        assert scene.converged(), scene.ours()
    finally:
        del scene.instances["brief"]


@pytest.mark.parametrize(("one", "other"), [("attach", "reconcile"), ("attach", "attach"), ("reconcile", "reconcile")])
def test_two_who_make_the_same_session_at_once_make_one(
    cloud: Cloud, stack: SimpleNamespace, one: str, other: str
) -> None:
    """Both have planned it, with the same number, before either makes it."""
    scene = stack.scene
    scene.clear()
    with ThreadPoolExecutor(2) as pool:
        with cloud.faults({"do": "hold", "times": 2, "call": CREATE}) as look:
            both = [pool.submit(run, cloud, stack, which) for which in (one, other)]
            wait_until(lambda: look()[0]["holding"] == 2, 20, "both to be about to make a session")
        answers = [b.result() for b in both]
    assert [a["failed"] for a in answers] == [[], []]
    assert scene.converged(), scene.ours()
