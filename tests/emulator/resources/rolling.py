"""The rolling update of a group: old instances go in batches, and those that take their places have to signal.

Sources: AWS CloudFormation user guide, "UpdatePolicy attribute", AutoScalingRollingUpdate; the lines of the stack's
events are those that CloudFormation writes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from .. import pace
from .kind import Context, Failed, Properties, seconds

ROLLS = ("LaunchConfigurationName", "LaunchTemplate", "MixedInstancesPolicy", "VPCZoneIdentifier", "AvailabilityZones")
"""A change of one of these makes the instances of a group obsolete."""

_launched_as: dict[str, Properties] = {}
"""What an instance of a group that rolled was launched from, so that a rollback knows what it keeps."""
_unfinished: dict[str, int] = {}
"""Groups whose update failed, and the capacity that they had before it: a rollback goes on from where it ended."""


@dataclass
class Policy:
    """AutoScalingRollingUpdate, with its defaults. A pause that waits for signals is five minutes by default."""

    in_service: int
    batch: int
    percent: float
    waits: bool
    pause: str
    suspended: list[str]

    @classmethod
    def of(cls, given: dict[str, Any]) -> Policy:
        waits = str(given.get("WaitOnResourceSignals", False)).lower() == "true"
        return cls(
            in_service=int(given.get("MinInstancesInService", 0)),
            batch=int(given.get("MaxBatchSize", 1)),
            percent=float(given.get("MinSuccessfulInstancesPercent", 100)),
            waits=waits,
            pause=str(given.get("PauseTime", "PT5M" if waits else "PT0S")),
            suspended=list(given.get("SuspendProcesses", [])),
        )


class Roll:
    """One rolling update of one group."""

    def __init__(self, context: Context, name: str, old: Properties, new: Properties, policy: Policy):
        self._context, self._name, self._policy = context, name, policy
        self._wanted = {key: new.get(key) for key in ROLLS}
        self._signals = context.signals
        before = {key: old.get(key) for key in ROLLS}
        self._group = self._described()
        running = self._in_service()
        self._obsolete = [i for i in running if _launched_as.setdefault(i, before) != self._wanted]
        self._all = len(self._obsolete)
        self._failures = 0
        self._min = int(new["MinSize"])
        before_it = _unfinished.get(name, int(self._group["DesiredCapacity"]))
        self._desired = max(self._min, int(new.get("DesiredCapacity") or before_it))

    def carry_out(self) -> None:
        policy = self._policy
        if not self._obsolete:
            return self._finish()
        if policy.in_service >= int(self._group["MaxSize"]):
            raise Failed("MinInstancesInService must be less than the autoscaling group's MaxSize")
        batch = min(policy.batch, self._all)
        waiting = f" Waiting on resource signals with a timeout of {policy.pause} when new instances are added to the "
        self._context.say(
            f"Rolling update initiated. Terminating {self._all} obsolete instance(s) in batches of {batch}, while "
            f"keeping at least {policy.in_service} instance(s) in service."
            + (waiting + "autoscaling group." if policy.waits else "")
        )
        self._call("SuspendProcesses", ScalingProcesses=policy.suspended)
        _unfinished.setdefault(self._name, int(self._group["DesiredCapacity"]))
        # What has to be kept in service beside a batch that goes may be more than the group has.
        enough = max(self._desired, min(policy.in_service + batch, int(self._group["MaxSize"])))
        with self._signals.opened(self._context.stack_id, self._context.logical_id) as box:
            if enough > self._desired:
                self._context.say(f"Temporarily setting autoscaling group MinSize and DesiredCapacity to {enough}.")
                self._adding(box, lambda: self._resize(enough, enough))
            while self._obsolete:
                self._next_batch(box, batch)
        return self._finish()

    def _finish(self) -> None:
        """The group has the instances that it shall have. After a failure this is left to the rollback."""
        self._resize(self._min, self._desired)
        if _unfinished.pop(self._name, None) is not None:
            self._call("ResumeProcesses", ScalingProcesses=self._policy.suspended)

    def _next_batch(self, box: Any, batch: int) -> None:
        running = self._in_service()
        going = self._obsolete[: max(1, min(batch, len(running) - self._policy.in_service))]
        del self._obsolete[: len(going)]
        replaced = min(len(going), max(0, self._desired - (len(running) - len(self._obsolete) - len(going))))
        self._context.say(f"Terminating instance(s) [{','.join(going)}]; replacing with {replaced} new instance(s).")

        def change() -> None:
            for number, instance in enumerate(going):
                self._context.call(
                    "autoscaling", "TerminateInstanceInAutoScalingGroup",
                    InstanceId=instance, ShouldDecrementDesiredCapacity=number >= replaced,
                )  # fmt: skip

        if replaced < len(going):
            # The group may not become smaller than its MinSize, which was raised for the time being.
            self._call("UpdateAutoScalingGroup", MinSize=self._min)
        self._adding(box, change, gone=set(going))
        done = 100 * (self._all - len(self._obsolete)) // self._all
        self._context.say(f"Successfully terminated instance(s) [{','.join(going)}] (Progress {done}%).")

    def _adding(self, box: Any, change: Any, gone: set[str] | None = None) -> None:
        """Makes a change, and waits for the signals of the instances that it adds and for the end of those that go."""
        before = set(self._in_service())
        change()
        added = set(self._in_service()) - before
        for instance in added:
            _launched_as[instance] = self._wanted
        if not self._signals.waited_for:
            # No instance signals here, and none of those that go is waited for.
            return
        if added and self._policy.waits:
            self._context.say(
                f"New instance(s) added to autoscaling group - Waiting on {len(added)} resource signal(s) with a "
                f"timeout of {self._policy.pause}."
            )
            limit = seconds(self._policy.pause)
            self._signals.wait(box, lambda: added <= box.held.keys(), limit)
            late = added - box.held.keys()
            if late:
                self._context.say(
                    f"Failed to receive {len(late)} resource signal(s) for the current batch. Each resource signal "
                    "timeout is counted as a FAILURE."
                )
            self._failures += len(late) + len(box.of(added, "FAILURE"))
            if (self._all - self._failures) * 100 < self._policy.percent * self._all:
                raise Failed(
                    f"Received {self._failures} FAILURE signal(s) out of {self._all}. Unable to satisfy "
                    f"{self._policy.percent:g}% MinSuccessfulInstancesPercent requirement"
                )
        elif not self._policy.waits:
            time.sleep(seconds(self._policy.pause) * pace.second)
        while gone and gone & {i["InstanceId"] for i in self._described()["Instances"]}:
            time.sleep(0.1)

    def _resize(self, least: int, desired: int) -> None:
        self._call("UpdateAutoScalingGroup", MinSize=least, DesiredCapacity=desired)

    def _described(self) -> dict[str, Any]:
        groups = self._context.call("autoscaling", "DescribeAutoScalingGroups", AutoScalingGroupNames=[self._name])
        return groups["AutoScalingGroups"][0]

    def _in_service(self) -> list[str]:
        return [i["InstanceId"] for i in self._described()["Instances"] if i["LifecycleState"] == "InService"]

    def _call(self, operation: str, **arguments: Any) -> None:
        if arguments.get("ScalingProcesses") != []:
            self._context.call("autoscaling", operation, AutoScalingGroupName=self._name, **arguments)


def rolling(context: Context, old: Properties, new: Properties) -> Policy | None:
    """How such a change rolls, if it does. Without an AutoScalingRollingUpdate CloudFormation leaves instances as they are."""
    given = context.policies.get("UpdatePolicy", {}).get("AutoScalingRollingUpdate")
    return Policy.of(given) if given is not None and any(old.get(key) != new.get(key) for key in ROLLS) else None
