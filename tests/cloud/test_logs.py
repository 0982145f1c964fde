"""The emulated Lambda delivers logs late, with the function's role: what that does to a log group that is gone."""

from __future__ import annotations

import json

import pytest
from conftest import Cloud, function, wait_until

SAYS = function('def handle(event, context):\n    print("a line", flush=True)\n    return {}')


def groups(cloud: Cloud) -> list[str]:
    return [g["logGroupName"] for g in cloud.client("logs").describe_log_groups()["logGroups"]]


def delivered(cloud: Cloud) -> bool:
    return cloud.lab("deliveries")["pending"] == 0


def test_what_a_function_writes_is_in_the_group_that_it_names(cloud: Cloud) -> None:
    logs = cloud.client("logs")
    logs.create_log_group(logGroupName="named")
    cloud.create_function("writes", SAYS, LoggingConfig={"LogFormat": "JSON", "LogGroup": "named"})
    cloud.invoke("writes", {})
    wait_until(lambda: delivered(cloud), 20, "the log")
    assert groups(cloud) == ["named"]
    (stream,) = logs.describe_log_streams(logGroupName="named")["logStreams"]
    events = logs.get_log_events(logGroupName="named", logStreamName=stream["logStreamName"])["events"]
    assert "a line" in [e["message"] for e in events]


@pytest.mark.parametrize("may", [True, False])
def test_a_late_write_makes_a_group_again_only_where_the_role_may(cloud: Cloud, may: bool) -> None:
    name = f"late-{may}".lower()
    cloud.create_function(name, SAYS)
    if not may:
        policy = {"Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": ["logs:CreateLogStream", "logs:PutLogEvents"], "Resource": "*"},
        ]}  # fmt: skip
        cloud.client("iam").put_role_policy(RoleName=f"role-{name}", PolicyName="all", PolicyDocument=json.dumps(policy))
    cloud.client("logs").create_log_group(logGroupName=f"/aws/lambda/{name}")
    cloud.invoke(name, {})
    # As a stack goes: function, role, log group; and only then comes what was written.
    cloud.client("lambda").delete_function(FunctionName=name)
    cloud.client("iam").delete_role_policy(RoleName=f"role-{name}", PolicyName="all")
    cloud.client("iam").delete_role(RoleName=f"role-{name}")
    cloud.client("logs").delete_log_group(logGroupName=f"/aws/lambda/{name}")
    assert not delivered(cloud)
    wait_until(lambda: delivered(cloud), 20, "the log")
    assert (f"/aws/lambda/{name}" in groups(cloud)) is may
