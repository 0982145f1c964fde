"""IAM: roles, policies, instance profiles."""

from __future__ import annotations

from .kind import Context, Kind, Made, Properties, document, only

_LONGEST = 64


def _create_role(context: Context, properties: Properties) -> Made:
    name = properties.get("RoleName") or context.name(_LONGEST)
    made = context.call(
        "iam", "CreateRole",
        RoleName=name,
        AssumeRolePolicyDocument=document(properties["AssumeRolePolicyDocument"]),
        **only(properties, "Path", "Description", "MaxSessionDuration", "PermissionsBoundary", "Tags"),
    )["Role"]  # fmt: skip
    _put_policies(context, name, properties)
    return Made(name, {"Arn": made["Arn"], "RoleId": made["RoleId"]})


def _put_policies(context: Context, role: str, properties: Properties) -> None:
    for policy in properties.get("Policies", []):
        context.call(
            "iam", "PutRolePolicy",
            RoleName=role, PolicyName=policy["PolicyName"], PolicyDocument=document(policy["PolicyDocument"]),
        )  # fmt: skip
    for arn in properties.get("ManagedPolicyArns", []):
        context.call("iam", "AttachRolePolicy", RoleName=role, PolicyArn=arn)


def _update_role(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    if old["AssumeRolePolicyDocument"] != new["AssumeRolePolicyDocument"]:
        text = document(new["AssumeRolePolicyDocument"])
        context.call("iam", "UpdateAssumeRolePolicy", RoleName=made.id, PolicyDocument=text)
    _drop_policies(context, made.id, old)
    _put_policies(context, made.id, new)
    if old.get("PermissionsBoundary") != new.get("PermissionsBoundary"):
        if boundary := new.get("PermissionsBoundary"):
            context.call("iam", "PutRolePermissionsBoundary", RoleName=made.id, PermissionsBoundary=boundary)
        else:
            context.call("iam", "DeleteRolePermissionsBoundary", RoleName=made.id)
    return made


def _drop_policies(context: Context, role: str, properties: Properties) -> None:
    for policy in properties.get("Policies", []):
        context.call("iam", "DeleteRolePolicy", RoleName=role, PolicyName=policy["PolicyName"])
    for arn in properties.get("ManagedPolicyArns", []):
        context.call("iam", "DetachRolePolicy", RoleName=role, PolicyArn=arn)


def _delete_role(context: Context, made: Made, properties: Properties) -> None:
    _drop_policies(context, made.id, properties)
    context.call("iam", "DeleteRole", RoleName=made.id)


def _create_policy(context: Context, properties: Properties) -> Made:
    for role in properties.get("Roles", []):
        context.call(
            "iam", "PutRolePolicy",
            RoleName=role, PolicyName=properties["PolicyName"], PolicyDocument=document(properties["PolicyDocument"]),
        )  # fmt: skip
    return Made(context.name(_LONGEST))


def _update_policy(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    _delete_policy(context, made, old)
    _create_policy(context, new)
    return made


def _delete_policy(context: Context, _: Made, properties: Properties) -> None:
    for role in properties.get("Roles", []):
        context.call("iam", "DeleteRolePolicy", RoleName=role, PolicyName=properties["PolicyName"])


def _create_managed_policy(context: Context, properties: Properties) -> Made:
    made = context.call(
        "iam", "CreatePolicy",
        PolicyName=properties.get("ManagedPolicyName") or context.name(128),
        PolicyDocument=document(properties["PolicyDocument"]),
        **only(properties, "Path", "Description"),
    )["Policy"]  # fmt: skip
    for role in properties.get("Roles", []):
        context.call("iam", "AttachRolePolicy", RoleName=role, PolicyArn=made["Arn"])
    return Made(made["Arn"], {"PolicyArn": made["Arn"]})


def _delete_managed_policy(context: Context, made: Made, properties: Properties) -> None:
    for role in properties.get("Roles", []):
        context.call("iam", "DetachRolePolicy", RoleName=role, PolicyArn=made.id)
    context.call("iam", "DeletePolicy", PolicyArn=made.id)


def _create_profile(context: Context, properties: Properties) -> Made:
    name = properties.get("InstanceProfileName") or context.name(128)
    made = context.call("iam", "CreateInstanceProfile", InstanceProfileName=name, **only(properties, "Path"))
    for role in properties.get("Roles", []):
        context.call("iam", "AddRoleToInstanceProfile", InstanceProfileName=name, RoleName=role)
    return Made(name, {"Arn": made["InstanceProfile"]["Arn"]})


def _delete_profile(context: Context, made: Made, properties: Properties) -> None:
    for role in properties.get("Roles", []):
        context.call("iam", "RemoveRoleFromInstanceProfile", InstanceProfileName=made.id, RoleName=role)
    context.call("iam", "DeleteInstanceProfile", InstanceProfileName=made.id)


_GONE = ("NoSuchEntity",)

KINDS = [
    Kind("AWS::IAM::Role", _create_role, _delete_role, _update_role, replaces=("RoleName", "Path"), gone=_GONE),
    Kind("AWS::IAM::Policy", _create_policy, _delete_policy, _update_policy, replaces=("PolicyName",), gone=_GONE),
    Kind("AWS::IAM::ManagedPolicy", _create_managed_policy, _delete_managed_policy, gone=_GONE),
    Kind("AWS::IAM::InstanceProfile", _create_profile, _delete_profile, gone=_GONE),
]
