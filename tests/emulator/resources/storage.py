"""Parameters, secrets, buckets."""

from __future__ import annotations

import json
import re
import secrets
import string
from typing import Any

from .kind import Context, Failed, Kind, Made, Properties, document, only, without


def _create_parameter(context: Context, properties: Properties) -> Made:
    return _put_parameter(context, properties.get("Name") or context.name(), properties, overwrite=False)


def _put_parameter(context: Context, name: str, properties: Properties, overwrite: bool) -> Made:
    value, pattern = properties["Value"], properties.get("AllowedPattern")
    # moto keeps the pattern without trying it.
    if pattern and not re.fullmatch(pattern, value):
        raise Failed(
            f"Parameter value, {value}, failed to satisfy constraint: {pattern} (ParameterPatternMismatchException)"
        )
    tags = properties.get("Tags")
    context.call(
        "ssm", "PutParameter",
        **without(properties, "Name", "Tags"), Name=name, Overwrite=overwrite,
        Tags=[{"Key": k, "Value": v} for k, v in tags.items()] if tags and not overwrite else None,
    )  # fmt: skip
    return Made(name, {"Type": properties["Type"], "Value": value})


def _update_parameter(context: Context, made: Made, _: Properties, new: Properties) -> Made:
    return _put_parameter(context, made.id, new, overwrite=True)


def _delete_parameter(context: Context, made: Made, _: Properties) -> None:
    context.call("ssm", "DeleteParameter", Name=made.id)


def _create_secret(context: Context, properties: Properties) -> Made:
    made = context.call(
        "secretsmanager", "CreateSecret",
        Name=properties.get("Name") or context.name(),
        SecretString=_secret(properties),
        **only(properties, "Description", "KmsKeyId", "Tags"),
    )  # fmt: skip
    return Made(made["ARN"], {"Id": made["ARN"]})


def _secret(properties: Properties) -> str | None:
    wish: dict[str, Any] | None = properties.get("GenerateSecretString")
    if wish is None:
        return properties.get("SecretString")
    characters = set(string.ascii_letters + string.digits) - set(wish.get("ExcludeCharacters", ""))
    value = "".join(secrets.choice(sorted(characters)) for _ in range(int(wish.get("PasswordLength", 32))))
    if "GenerateStringKey" not in wish:
        return value
    return json.dumps({**json.loads(wish.get("SecretStringTemplate", "{}")), wish["GenerateStringKey"]: value})


def _delete_secret(context: Context, made: Made, _: Properties) -> None:
    context.call("secretsmanager", "DeleteSecret", SecretId=made.id, ForceDeleteWithoutRecovery=True)


_BUCKET_CALLS = {
    "VersioningConfiguration": ("PutBucketVersioning", "VersioningConfiguration"),
    "PublicAccessBlockConfiguration": ("PutPublicAccessBlock", "PublicAccessBlockConfiguration"),
    "BucketEncryption": ("PutBucketEncryption", "ServerSideEncryptionConfiguration"),
}


def _create_bucket(context: Context, properties: Properties) -> Made:
    if unknown := properties.keys() - _BUCKET_CALLS.keys() - {"BucketName", "Tags"}:
        raise Failed(f"properties of a bucket that are not emulated: {', '.join(sorted(unknown))}")
    name = properties.get("BucketName") or context.name(63, lower=True)
    elsewhere = {"LocationConstraint": context.region} if context.region != "us-east-1" else None
    context.call("s3", "CreateBucket", Bucket=name, CreateBucketConfiguration=elsewhere)
    for key, (operation, argument) in _BUCKET_CALLS.items():
        if key in properties:
            value = properties[key]
            if key == "BucketEncryption":
                value = {"Rules": _encryption_rules(value)}
            context.call("s3", operation, Bucket=name, **{argument: value})
    if tags := properties.get("Tags"):
        context.call("s3", "PutBucketTagging", Bucket=name, Tagging={"TagSet": tags})
    domain = f"{name}.s3.amazonaws.com"
    return Made(name, {"Arn": f"arn:aws:s3:::{name}", "DomainName": domain, "RegionalDomainName": domain})


def _encryption_rules(value: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"ApplyServerSideEncryptionByDefault": rule["ServerSideEncryptionByDefault"], **only(rule, "BucketKeyEnabled")}
        for rule in value["ServerSideEncryptionConfiguration"]
    ]


def _delete_bucket(context: Context, made: Made, _: Properties) -> None:
    context.call("s3", "DeleteBucket", Bucket=made.id)


def _create_bucket_policy(context: Context, properties: Properties) -> Made:
    # moto judges a policy without its conditions, and a client reaches the emulator without TLS as it reaches AWS with
    # it: the statement that refuses plain HTTP would refuse everything.
    policy = dict(properties["PolicyDocument"])
    policy["Statement"] = [
        s for s in policy["Statement"] if "aws:SecureTransport" not in document(s.get("Condition", {}))
    ]
    context.call("s3", "PutBucketPolicy", Bucket=properties["Bucket"], Policy=document(policy))
    return Made(properties["Bucket"])


def _delete_bucket_policy(context: Context, _: Made, properties: Properties) -> None:
    context.call("s3", "DeleteBucketPolicy", Bucket=properties["Bucket"])


KINDS = [
    Kind(
        "AWS::SSM::Parameter",
        _create_parameter,
        _delete_parameter,
        _update_parameter,
        replaces=("Name",),
        gone=("ParameterNotFound",),
    ),
    Kind("AWS::SecretsManager::Secret", _create_secret, _delete_secret, gone=("ResourceNotFoundException",)),
    Kind("AWS::S3::Bucket", _create_bucket, _delete_bucket, gone=("NoSuchBucket",)),
    Kind("AWS::S3::BucketPolicy", _create_bucket_policy, _delete_bucket_policy, gone=("NoSuchBucket",)),
]
