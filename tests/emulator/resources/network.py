"""Security groups and launch templates."""

from __future__ import annotations

from typing import Any

from .kind import Context, Kind, Made, Properties, only


def _create_group(context: Context, properties: Properties) -> Made:
    tags = properties.get("Tags")
    made = context.call(
        "ec2", "CreateSecurityGroup",
        GroupName=properties.get("GroupName") or context.name(),
        Description=properties["GroupDescription"],
        VpcId=properties.get("VpcId"),
        TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}] if tags else None,
    )  # fmt: skip
    group = made["GroupId"]
    _add_rules(context, group, properties)
    found = context.call("ec2", "DescribeSecurityGroups", GroupIds=[group])["SecurityGroups"][0]
    return Made(group, {"GroupId": group, "Id": group, "VpcId": found.get("VpcId")})


def _add_rules(context: Context, group: str, properties: Properties) -> None:
    if rules := properties.get("SecurityGroupIngress"):
        context.call(
            "ec2", "AuthorizeSecurityGroupIngress", GroupId=group, IpPermissions=[_permission(r) for r in rules]
        )
    if rules := properties.get("SecurityGroupEgress"):
        # Naming any rule takes the one away that a new group has: everything, to anywhere.
        _revoke(context, group, "Egress")
        context.call(
            "ec2", "AuthorizeSecurityGroupEgress", GroupId=group, IpPermissions=[_permission(r) for r in rules]
        )


def _permission(rule: Properties) -> dict[str, Any]:
    described = only(rule, "Description")
    permission: dict[str, Any] = {"IpProtocol": str(rule["IpProtocol"]), **only(rule, "FromPort", "ToPort")}
    if "CidrIp" in rule:
        permission["IpRanges"] = [{"CidrIp": rule["CidrIp"], **described}]
    if "CidrIpv6" in rule:
        permission["Ipv6Ranges"] = [{"CidrIpv6": rule["CidrIpv6"], **described}]
    for name in ("SourceSecurityGroupId", "DestinationSecurityGroupId"):
        if name in rule:
            permission["UserIdGroupPairs"] = [{"GroupId": rule[name], **described}]
    for name in ("SourcePrefixListId", "DestinationPrefixListId"):
        if name in rule:
            permission["PrefixListIds"] = [{"PrefixListId": rule[name], **described}]
    return permission


def _revoke(context: Context, group: str, direction: str) -> None:
    found = context.call("ec2", "DescribeSecurityGroups", GroupIds=[group])["SecurityGroups"][0]
    held = found["IpPermissionsEgress" if direction == "Egress" else "IpPermissions"]
    if held:
        context.call("ec2", f"RevokeSecurityGroup{direction}", GroupId=group, IpPermissions=held)


def _update_group(context: Context, made: Made, old: Properties, new: Properties) -> Made:
    for direction in ("Ingress", "Egress"):
        name = f"SecurityGroup{direction}"
        if old.get(name) == new.get(name):
            continue
        # Only the template's own rules: others may have been added by resources of their own.
        if old.get(name):
            permissions = [_permission(r) for r in old[name]]
            context.call("ec2", f"RevokeSecurityGroup{direction}", GroupId=made.id, IpPermissions=permissions)
        _add_rules(context, made.id, only(new, name))
    return made


def _delete_group(context: Context, made: Made, _: Properties) -> None:
    context.call("ec2", "DeleteSecurityGroup", GroupId=made.id)


def _rule_kind(direction: str) -> Kind:
    def create(context: Context, properties: Properties) -> Made:
        made = context.call(
            "ec2", f"AuthorizeSecurityGroup{direction}",
            GroupId=properties["GroupId"], IpPermissions=[_permission(properties)],
        )  # fmt: skip
        rules = made.get("SecurityGroupRules") or [{}]
        return Made(rules[0].get("SecurityGroupRuleId") or context.name())

    def delete(context: Context, made: Made, properties: Properties) -> None:
        context.call(
            "ec2", f"RevokeSecurityGroup{direction}",
            GroupId=properties["GroupId"], IpPermissions=[_permission(properties)],
        )  # fmt: skip

    gone = ("InvalidGroup.NotFound", "InvalidPermission.NotFound")
    return Kind(f"AWS::EC2::SecurityGroup{direction}", create, delete, gone=gone)


def _create_template(context: Context, properties: Properties) -> Made:
    made = context.call(
        "ec2", "CreateLaunchTemplate",
        LaunchTemplateName=properties.get("LaunchTemplateName") or context.name(128),
        LaunchTemplateData=properties["LaunchTemplateData"],
        VersionDescription=properties.get("VersionDescription"),
        TagSpecifications=properties.get("TagSpecifications"),
    )["LaunchTemplate"]  # fmt: skip
    return _template(made["LaunchTemplateId"], made["DefaultVersionNumber"], made["LatestVersionNumber"])


def _update_template(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    version = context.call(
        "ec2", "CreateLaunchTemplateVersion",
        LaunchTemplateId=made.id,
        LaunchTemplateData=new["LaunchTemplateData"],
        VersionDescription=new.get("VersionDescription"),
    )["LaunchTemplateVersion"]  # fmt: skip
    return _template(made.id, made.attributes["DefaultVersionNumber"], version["VersionNumber"])


def _template(template_id: str, default: Any, latest: Any) -> Made:
    attributes = {
        "LaunchTemplateId": template_id,
        "DefaultVersionNumber": str(default),
        "LatestVersionNumber": str(latest),
    }
    return Made(template_id, attributes)


def _delete_template(context: Context, made: Made, _: Properties) -> None:
    context.call("ec2", "DeleteLaunchTemplate", LaunchTemplateId=made.id)


KINDS = [
    Kind(
        "AWS::EC2::SecurityGroup", _create_group, _delete_group, _update_group,
        replaces=("GroupName", "GroupDescription", "VpcId"), gone=("InvalidGroup.NotFound",),
    ),
    _rule_kind("Ingress"),
    _rule_kind("Egress"),
    Kind(
        "AWS::EC2::LaunchTemplate", _create_template, _delete_template, _update_template,
        replaces=("LaunchTemplateName",), gone=("InvalidLaunchTemplateId.NotFound",),
    ),
]  # fmt: skip
