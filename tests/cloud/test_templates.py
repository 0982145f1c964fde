"""Templates by themselves: reading, functions, conditions, dependencies. Expected values are those of AWS' pages."""

from __future__ import annotations

from typing import Any

import conftest  # noqa: F401  puts the emulator on the path
import pytest
from emulator import templates
from emulator.templates import Scope, TemplateError

SCOPE = Scope(
    pseudo={"Region": "us-east-1", "StackName": "s", "AccountId": "123456789012"},
    parameters={"Name": "web", "Zones": ["a", "b"]},
    mappings={"Sizes": {"us-east-1": {"small": "t3"}}},
    conditions={"Yes": True, "No": False},
    zones=lambda region: [f"{region}a", f"{region}b"],
    resource=lambda name: f"id-of-{name}",
    attribute=lambda name, attribute: f"{name}/{attribute}",
)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"Ref": "Name"}, "web"),
        ({"Ref": "Bucket"}, "id-of-Bucket"),
        ({"Ref": "AWS::Region"}, "us-east-1"),
        ({"Fn::GetAtt": ["Queue", "Arn"]}, "Queue/Arn"),
        ({"Fn::Sub": "${Name}-${AWS::Region}-${Queue.Arn}-${Bucket}"}, "web-us-east-1-Queue/Arn-id-of-Bucket"),
        ({"Fn::Sub": "Hello ${!Literal}"}, "Hello ${Literal}"),
        ({"Fn::Sub": ["www.${Domain}", {"Domain": {"Ref": "Name"}}]}, "www.web"),
        ({"Fn::Join": [":", ["a", "b", "c"]]}, "a:b:c"),
        ({"Fn::Join": ["", ["p", {"Ref": "AWS::NoValue"}, "q"]]}, "pq"),
        ({"Fn::Split": ["|", "a|b|c"]}, ["a", "b", "c"]),
        ({"Fn::Select": ["1", ["apples", "grapes", "oranges", "mangoes"]]}, "grapes"),
        ({"Fn::Select": [0, {"Fn::Split": [",", {"Fn::Join": [",", {"Ref": "Zones"}]}]}]}, "a"),
        ({"Fn::If": ["Yes", 1, 2]}, 1),
        ({"kept": 1, "gone": {"Fn::If": ["No", 1, {"Ref": "AWS::NoValue"}]}}, {"kept": 1}),
        ([1, {"Ref": "AWS::NoValue"}, 2], [1, 2]),
        ({"Fn::FindInMap": ["Sizes", {"Ref": "AWS::Region"}, "small"]}, "t3"),
        ({"Fn::GetAZs": ""}, ["us-east-1a", "us-east-1b"]),
        ({"Fn::Base64": "valueToEncode"}, "dmFsdWVUb0VuY29kZQ=="),
        ({"Fn::Cidr": ["192.168.0.0/24", "3", "5"]}, ["192.168.0.0/27", "192.168.0.32/27", "192.168.0.64/27"]),
        ({"Fn::And": [{"Condition": "Yes"}, {"Fn::Equals": [{"Ref": "Name"}, "web"]}]}, True),
        ({"Fn::Or": [{"Condition": "No"}, {"Fn::Not": [{"Condition": "Yes"}]}]}, False),
        # Not functions: a policy's condition, and an object of several keys.
        ({"Condition": {"StringEquals": {"a": "b"}}}, {"Condition": {"StringEquals": {"a": "b"}}}),
        ({"Ref": "x", "other": 1}, {"Ref": "x", "other": 1}),
    ],
)
def test_a_function_gives_what_aws_documents(given: Any, expected: Any) -> None:
    assert templates.resolve(given, SCOPE) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"Fn::Select": [5, ["a"]]}, "cannot select nonexistent value at index 5"),
        ({"Fn::FindInMap": ["Sizes", "eu-west-1", "small"]}, "Unable to get mapping for Sizes::eu-west-1::small"),
        ({"Fn::If": ["Maybe", 1, 2]}, "unresolved condition dependency Maybe"),
        ({"Fn::Transform": {}}, "Fn::Transform is not emulated"),
        ({"Fn::Join": "a"}, "every Fn::Join must have arguments of its documented form"),
        ({"Ref": "AWS::Nonsense"}, "every Ref must have arguments of its documented form"),
    ],
)
def test_a_function_that_cannot_be_is_named(given: Any, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        templates.resolve(given, SCOPE)


def test_short_forms_and_dates_are_read_as_written() -> None:
    read = templates.parse(
        "AWSTemplateFormatVersion: 2010-09-09\n"
        "Resources: {A: {Type: T, Properties: {V: 2012-10-17, G: !GetAtt B.C.D, S: !Sub '${X}', C: !If [Y, !Ref Z, 1]}}}"
    )
    assert read["AWSTemplateFormatVersion"] == "2010-09-09"
    assert read["Resources"]["A"]["Properties"] == {
        "V": "2012-10-17",
        "G": {"Fn::GetAtt": ["B", "C.D"]},
        "S": {"Fn::Sub": "${X}"},
        "C": {"Fn::If": ["Y", {"Ref": "Z"}, 1]},
    }


def test_conditions_may_name_each_other_in_any_order() -> None:
    declared = {"Conditions": {"A": {"Fn::Not": [{"Condition": "B"}]}, "B": {"Fn::Equals": [{"Ref": "Name"}, "db"]}}}
    assert templates.conditions(declared, SCOPE) == {"A": True, "B": False}


def test_every_way_to_name_a_resource_is_a_dependency() -> None:
    resources = {
        "Explicit": {"Type": "T", "DependsOn": "A"},
        "ByRef": {"Type": "T", "Properties": {"x": [{"y": {"Ref": "A"}}]}},
        "ByAttribute": {"Type": "T", "Properties": {"x": {"Fn::GetAtt": ["A", "Arn"]}}},
        "BySub": {"Type": "T", "Properties": {"x": {"Fn::Sub": ["${A.Arn} ${v}", {"v": {"Ref": "B"}, "A": "x"}]}}},
        "ByTakenBranch": {"Type": "T", "Properties": {"x": {"Fn::If": ["Yes", {"Ref": "A"}, {"Ref": "B"}]}}},
        "ByNothing": {"Type": "T", "Properties": {"x": "A", "y": {"Ref": "Name"}, "z": {"Fn::Sub": "${!A}"}}},
        "A": {"Type": "T"},
        "B": {"Type": "T"},
    }
    graph = templates.dependencies(resources, set(resources), SCOPE.conditions)
    assert graph == {
        "Explicit": {"A"},
        "ByRef": {"A"},
        "ByAttribute": {"A"},
        "BySub": {"A", "B"},
        "ByTakenBranch": {"A"},
        "ByNothing": set(),
        "A": set(),
        "B": set(),
    }


def test_a_resource_whose_condition_fails_is_nobodys_dependency() -> None:
    template = {"Resources": {"A": {"Type": "T", "Condition": "No"}, "B": {"Type": "T", "DependsOn": ["A"]}}}
    included = templates.included(template, SCOPE.conditions)
    assert templates.dependencies(template["Resources"], included, SCOPE.conditions) == {"B": set()}
