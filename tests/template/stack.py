"""The template as CloudFormation sees it: after the SAM transform, as a graph, and with parameter values put in.

Nothing here talks to AWS or to an emulator, so that the tests beside it take seconds.
"""

import copy
import functools
import re
from pathlib import Path

import boto3
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "template.yaml"

# Values for the parameters that have no default, and for the one that Systems Manager would look up.
SAMPLE = {
    "VpcId": "vpc-0123456789abcdef0",
    "SubnetIds": ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"],
    "AnalyzerUrl": "http://waf.example:8080",
    "RebuilderImage": "ami-0123456789abcdef0",
}

PSEUDO = {
    "AWS::StackName": "first",
    "AWS::StackId": "arn:aws:cloudformation:eu-west-1:123456789012:stack/first/0b5c6b50-0000-0000-0000-000000000000",
    "AWS::Region": "eu-west-1",
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
}


def source():
    """The template as it is written, with short forms such as !Ref in their long form."""
    return yaml_parse(TEMPLATE.read_text())


@functools.cache
def _transformed():
    template = source()
    for name, resource in template["Resources"].items():
        # What `sam deploy` does first: local folders become uploaded objects.
        for key in ("CodeUri", "ContentUri"):
            if key in resource.get("Properties", {}):
                resource["Properties"][key] = f"s3://bucket/{name}"
    # A session of its own, because the transform asks one for the region, and this machine may have no AWS profile.
    session = boto3.Session(region_name=PSEUDO["AWS::Region"])
    return Translator({}, Parser(), boto_session=session).translate(template, parameter_values={})


def transformed():
    """The template after the SAM transform: plain CloudFormation, implicit resources included. Free to be changed."""
    return copy.deepcopy(_transformed())


def of_type(template, kind):
    """Logical id -> resource, for one resource type."""
    return {name: r for name, r in template["Resources"].items() if r["Type"] == kind}


# ---- The graph -------------------------------------------------------------------------------------------------------


def references(value):
    """Every name that a piece of template refers to with Ref, Fn::GetAtt or Fn::Sub."""
    if isinstance(value, list):
        return set().union(*map(references, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    found = set()
    for key, inner in value.items():
        if key == "Ref":
            found.add(inner)
        elif key == "Fn::GetAtt":
            found.add(inner.split(".")[0] if isinstance(inner, str) else inner[0])
        elif key == "Fn::Sub":
            text, variables = (inner, {}) if isinstance(inner, str) else inner
            names = {name.split(".")[0] for name in re.findall(r"\$\{([^!}][^}]*)\}", text)}
            found |= (names - set(variables)) | references(variables)
        else:
            found |= references(inner)
    return found


def depends_on(resource):
    """The DependsOn of a resource, as a list."""
    value = resource.get("DependsOn", [])
    return [value] if isinstance(value, str) else list(value)


def edges(template):
    """Logical id -> the ids that it directly needs: they are created before it, and removed after it."""
    resources = template["Resources"]
    return {
        name: ({*depends_on(r)} | references({k: v for k, v in r.items() if k != "Metadata"})) & resources.keys()
        for name, r in resources.items()
    }


def reachable(graph, start):
    """All that `start` needs, directly or through others."""
    seen, todo = set(), [start]
    while todo:
        for needed in graph[todo.pop()] - seen:
            seen.add(needed)
            todo.append(needed)
    return seen


# ---- With values put in ----------------------------------------------------------------------------------------------


class Absent:
    """What `!Ref AWS::NoValue` gives: the property or list item is not there."""


class Evaluated:
    """A template with parameter values put in, as far as that can be known before anything exists.

    A reference to a resource gives `<Name>`, an attribute `<Name.Attribute>`.
    """

    def __init__(self, template=None, stack_name="first", **parameters):
        self.template = template or transformed()
        defaults = {name: str(p["Default"]) for name, p in self.template["Parameters"].items() if "Default" in p}
        self.values = {**PSEUDO, **defaults, **SAMPLE, **parameters, "AWS::StackName": stack_name}

    def resources(self, kind=None):
        """Logical id -> resource with its values, of those whose condition holds."""
        return {
            name: {k: v if k in ("Type", "DependsOn") else self.value(v) for k, v in r.items() if k != "Condition"}
            for name, r in self.template["Resources"].items()
            if (kind is None or r["Type"] == kind) and ("Condition" not in r or self.condition(r["Condition"]))
        }

    def outputs(self):
        """Name -> value, of those whose condition holds."""
        return {
            name: self.value(o["Value"])
            for name, o in self.template["Outputs"].items()
            if "Condition" not in o or self.condition(o["Condition"])
        }

    def properties(self, name):
        return self.value(self.template["Resources"][name].get("Properties", {}))

    def condition(self, name):
        return self.value(self.template["Conditions"][name])

    def value(self, node):
        if isinstance(node, list):
            return [v for v in map(self.value, node) if v is not Absent]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((key, inner),) = node.items()
            function = self.FUNCTIONS.get(key)
            # "Condition" is also a key of a policy statement, where it holds a map.
            if function and not (key == "Condition" and not isinstance(inner, str)):
                return function(self, inner)
            if key.startswith("Fn::"):
                raise NotImplementedError(key)
        return {k: v for k, v in ((k, self.value(v)) for k, v in node.items()) if v is not Absent}

    def _ref(self, name):
        if name == "AWS::NoValue":
            return Absent
        return self.values[name] if name in self.values else self._known(name, f"<{name}>")

    def _getatt(self, what):
        name = what if isinstance(what, str) else ".".join(what)
        return self._known(name.split(".")[0], f"<{name}>")

    def _known(self, name, result):
        if name not in self.template["Resources"]:
            raise KeyError(f"{name} is neither a parameter nor a resource")
        return result

    def _sub(self, what):
        text, variables = (what, {}) if isinstance(what, str) else (what[0], self.value(what[1]))

        def replace(match):
            name = match[1]
            if name.startswith("!"):
                return "${" + name[1:] + "}"
            if name in variables:
                return str(variables[name])
            return str(self._getatt(name) if "." in name else self._ref(name))

        return re.sub(r"\$\{([^}]+)\}", replace, text)

    def _select(self, what):
        index, items = what
        return self.value(items)[int(index)]

    def _split(self, what):
        delimiter, text = what
        return self.value(text).split(delimiter)

    def _join(self, what):
        delimiter, items = what
        return delimiter.join(map(str, self.value(items)))

    def _if(self, what):
        name, then, otherwise = what
        return self.value(then if self.condition(name) else otherwise)

    def _equals(self, what):
        left, right = (str(self.value(side)) for side in what)
        return left == right

    FUNCTIONS = {
        "Ref": _ref,
        "Condition": condition,
        "Fn::GetAtt": _getatt,
        "Fn::Sub": _sub,
        "Fn::Select": _select,
        "Fn::Split": _split,
        "Fn::Join": _join,
        "Fn::If": _if,
        "Fn::Base64": value,
        "Fn::Equals": _equals,
        "Fn::Not": lambda self, what: not self.value(what[0]),
        "Fn::And": lambda self, what: all(map(self.value, what)),
        "Fn::Or": lambda self, what: any(map(self.value, what)),
    }
