"""CloudFormation templates: parameters, conditions, intrinsic functions and the graph of dependencies.

Pure: values that only exist once a resource does are asked for through a ``Scope``.
https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/intrinsic-function-reference.html
"""

from __future__ import annotations

import base64
import ipaddress
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

NO_VALUE = object()
"""What ``AWS::NoValue`` stands for: the property is left out."""


class TemplateError(Exception):
    """CloudFormation refuses the template or its parameters before it makes anything."""


# -- reading -------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms; what looks like a date stays text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _short_form(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        value: Any = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if suffix == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _short_form)


def parse(text: str) -> dict[str, Any]:
    """A template as written, JSON or YAML."""
    try:
        found = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as wrong:
        raise TemplateError(f"Template format error: {wrong}") from None
    if not isinstance(found, dict) or not isinstance(found.get("Resources"), dict) or not found["Resources"]:
        raise TemplateError("Template format error: At least one Resources member must be defined.")
    for name, resource in found["Resources"].items():
        if not isinstance(resource, dict) or "Type" not in resource:
            raise TemplateError(
                f"Template format error: [/Resources/{name}] Every Resources object must contain a Type member."
            )
    return found


# -- parameters ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lookups:
    """What parameters and rules may ask of the account."""

    ssm_parameter: Callable[[str], str | None]
    """The value of a Systems Manager parameter, by name."""
    attribute: Callable[[str, str, str], str | None]
    """An attribute of an existing thing: ``("AWS::EC2::Subnet::Id", "subnet-1", "VpcId")``; None when there is none."""
    exists: Callable[[str, str], bool]
    """Whether a thing of an AWS-specific parameter type exists."""


def parameters(template: dict[str, Any], given: dict[str, str], lookups: Lookups) -> dict[str, Any]:
    """The value of each parameter, checked as CloudFormation checks it. Lists are lists, all else is text."""
    declared = template.get("Parameters") or {}
    unknown = [name for name in given if name not in declared]
    if unknown:
        raise TemplateError(f"Parameters: [{', '.join(unknown)}] do not exist in the template")
    missing = [name for name, p in declared.items() if name not in given and "Default" not in p]
    if missing:
        raise TemplateError(f"Parameters: [{', '.join(missing)}] must have values")
    return {name: _parameter(name, p, str(given.get(name, p.get("Default"))), lookups) for name, p in declared.items()}


def _parameter(name: str, declared: dict[str, Any], value: str, lookups: Lookups) -> Any:
    kind = declared.get("Type", "String")
    from_ssm = re.fullmatch(r"AWS::SSM::Parameter::Value<(.+)>", kind)
    if from_ssm:
        found = lookups.ssm_parameter(value)
        if found is None:
            raise TemplateError(f"Unable to fetch parameters [{value}] from parameter store for this account.")
        kind, value = from_ssm[1], found
    is_list = kind == "CommaDelimitedList" or kind.startswith("List<")
    values = [part.strip() for part in value.split(",")] if is_list else [value]
    inner = kind[5:-1] if kind.startswith("List<") else kind
    for one in values:
        _check_parameter(name, declared, inner, one, lookups)
    return values if is_list else value


def _check_parameter(name: str, declared: dict[str, Any], kind: str, value: str, lookups: Lookups) -> None:
    def refuse(what: str) -> TemplateError:
        explained = declared.get("ConstraintDescription")
        return TemplateError(f"Parameter '{name}' {explained}" if explained else f"Parameter '{name}' {what}")

    allowed = declared.get("AllowedValues")
    if allowed is not None and value not in [str(a) for a in allowed]:
        raise refuse(f"must be one of AllowedValues: {', '.join(map(str, allowed))}")
    pattern = declared.get("AllowedPattern")
    if pattern and not re.fullmatch(pattern, value):
        raise refuse(f"must match pattern {pattern}")
    if not int(declared.get("MinLength", 0)) <= len(value) <= int(declared.get("MaxLength", 4096)):
        raise refuse("is too short or too long")
    if kind == "Number":
        try:
            number = float(value)
        except ValueError:
            raise refuse("must be a number.") from None
        if not float(declared.get("MinValue", "-inf")) <= number <= float(declared.get("MaxValue", "inf")):
            raise refuse("is too small or too large")
    if kind.startswith("AWS::EC2::") and not lookups.exists(kind, value):
        raise TemplateError(
            f"Template validation error: Parameter validation failed: parameter value {value} for parameter name "
            f"{name} does not exist"
        )


# -- values --------------------------------------------------------------------------------------------------------


@dataclass
class Scope:
    """What names mean while values are resolved."""

    pseudo: dict[str, Any]
    """By name without ``AWS::``."""
    parameters: dict[str, Any] = field(default_factory=dict)
    mappings: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, bool] = field(default_factory=dict)
    zones: Callable[[str], list[str]] = lambda _region: []
    imported: Callable[[str], str] = lambda name: _undefined("Fn::ImportValue", name)
    resource: Callable[[str], str] = lambda name: _undefined("Ref", name)
    """The physical id of a resource."""
    attribute: Callable[[str, str], Any] = lambda name, attribute: _undefined("Fn::GetAtt", f"{name}.{attribute}")


def _undefined(function: str, name: str) -> Any:
    raise TemplateError(f"Template error: {function} references undefined resource {name}")


def resolve(value: Any, scope: Scope) -> Any:
    """The value with every intrinsic function replaced by what it gives."""
    if isinstance(value, list):
        return [found for item in value if (found := resolve(item, scope)) is not NO_VALUE]
    if not isinstance(value, dict):
        return value
    call = _call_of(value)
    if call is None:
        resolved = {key: resolve(item, scope) for key, item in value.items()}
        return {key: item for key, item in resolved.items() if item is not NO_VALUE}
    name, argument = call
    function = _FUNCTIONS.get(name)
    if function is None:
        raise TemplateError(f"Template error: {name} is not emulated")
    try:
        return function(argument, scope)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise TemplateError(f"Template error: every {name} must have arguments of its documented form") from None


def _call_of(value: dict[str, Any]) -> tuple[str, Any] | None:
    if len(value) != 1:
        return None
    ((name, argument),) = value.items()
    if name == "Ref" or name.startswith("Fn::") or (name == "Condition" and isinstance(argument, str)):
        return name, argument
    return None


def _ref(argument: str, scope: Scope) -> Any:
    if argument == "AWS::NoValue":
        return NO_VALUE
    if argument.startswith("AWS::"):
        return scope.pseudo[argument.removeprefix("AWS::")]
    return scope.parameters[argument] if argument in scope.parameters else scope.resource(argument)


def _get_att(argument: list[Any], scope: Scope) -> Any:
    name, attribute = argument if isinstance(argument, list) else argument.split(".", 1)
    return scope.attribute(name, resolve(attribute, scope))


def _sub(argument: Any, scope: Scope) -> str:
    text, variables = (argument, {}) if isinstance(argument, str) else argument
    values = {name: resolve(value, scope) for name, value in variables.items()}

    def fill(found: re.Match[str]) -> str:
        name = found[1].strip()
        if name.startswith("!"):
            return "${" + name[1:] + "}"
        if name in values:
            return _text(values[name])
        return _text(_get_att(name.split(".", 1), scope) if "." in name else _ref(name, scope))

    return re.sub(r"\$\{([^}]+)\}", fill, text)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(_text, value)) if isinstance(value, list) else str(value)


def _join(argument: list[Any], scope: Scope) -> str:
    separator, items = argument
    return str(separator).join(_text(item) for item in resolve(items, scope))


def _select(argument: list[Any], scope: Scope) -> Any:
    index, items = resolve(argument, scope)
    if not 0 <= int(index) < len(items):
        raise TemplateError(f"Template error: Fn::Select cannot select nonexistent value at index {index}")
    return items[int(index)]


def _split(argument: list[Any], scope: Scope) -> list[str]:
    separator, text = resolve(argument, scope)
    return _text(text).split(separator)


def _if(argument: list[Any], scope: Scope) -> Any:
    name, when_true, when_false = argument
    return resolve(when_true if _condition(name, scope) else when_false, scope)


def _condition(name: str, scope: Scope) -> bool:
    if name not in scope.conditions:
        raise TemplateError(f"Template error: unresolved condition dependency {name}")
    return scope.conditions[name]


def _find_in_map(argument: list[Any], scope: Scope) -> Any:
    name, first, second = (resolve(part, scope) for part in argument[:3])
    try:
        return scope.mappings[name][first][second]
    except KeyError:
        if len(argument) > 3:
            return resolve(argument[3]["DefaultValue"], scope)
        raise TemplateError(f"Template error: Unable to get mapping for {name}::{first}::{second}") from None


def _cidr(argument: list[Any], scope: Scope) -> list[str]:
    block, count, *bits = resolve(argument, scope)
    network = ipaddress.ip_network(block)
    prefix = network.max_prefixlen - int(bits[0] if bits else 8)
    return [str(part) for part in itertools.islice(network.subnets(new_prefix=prefix), int(count))]


def _equals(argument: list[Any], scope: Scope) -> bool:
    left, right = resolve(argument, scope)
    return _text(left) == _text(right)


_FUNCTIONS: dict[str, Callable[[Any, Scope], Any]] = {
    "Ref": _ref,
    "Condition": _condition,
    "Fn::GetAtt": _get_att,
    "Fn::Sub": _sub,
    "Fn::Join": _join,
    "Fn::Select": _select,
    "Fn::Split": _split,
    "Fn::If": _if,
    "Fn::FindInMap": _find_in_map,
    "Fn::GetAZs": lambda argument, scope: scope.zones(resolve(argument, scope) or scope.pseudo["Region"]),
    "Fn::Base64": lambda argument, scope: base64.b64encode(_text(resolve(argument, scope)).encode()).decode(),
    "Fn::Cidr": _cidr,
    "Fn::ImportValue": lambda argument, scope: scope.imported(resolve(argument, scope)),
    "Fn::Equals": _equals,
    "Fn::And": lambda argument, scope: all(resolve(item, scope) for item in argument),
    "Fn::Or": lambda argument, scope: any(resolve(item, scope) for item in argument),
    "Fn::Not": lambda argument, scope: not resolve(argument[0], scope),
}


def conditions(template: dict[str, Any], scope: Scope) -> dict[str, bool]:
    """Each condition's value; they may name each other in any order."""
    declared = template.get("Conditions") or {}
    found: dict[str, bool] = {}

    class Lazy(dict[str, bool]):
        def __contains__(self, name: object) -> bool:
            return name in declared

        def __getitem__(self, name: str) -> bool:
            if name not in found:
                found[name] = bool(resolve(declared[name], lazily))
            return found[name]

    lazily = Scope(**{**scope.__dict__, "conditions": Lazy()})
    for name in declared:
        lazily.conditions[name]
    return found


def check_rules(template: dict[str, Any], scope: Scope, lookups: Lookups) -> None:
    """The Rules section: assertions about parameters, with functions of their own."""
    types = {name: p.get("Type", "String") for name, p in (template.get("Parameters") or {}).items()}

    def values_of(kind: str) -> list[str]:
        wanted = (kind, f"List<{kind}>")
        return [v for name, t in types.items() if t in wanted for v in _as_list(scope.parameters[name])]

    def attribute(kind: str, value: str, name: str) -> str:
        return lookups.attribute(kind, value, name) or ""

    def evaluate(rule: Any) -> Any:
        call = _call_of(rule) if isinstance(rule, dict) else None
        if call is None:
            return [evaluate(item) for item in rule] if isinstance(rule, list) else rule
        name, argument = call
        match name:
            case "Fn::RefAll":
                return values_of(argument)
            case "Fn::ValueOf":
                parameter, of = argument
                kind = types[parameter].removeprefix("List<").removesuffix(">")
                found = [attribute(kind, v, of) for v in _as_list(scope.parameters[parameter])]
                return found if isinstance(scope.parameters[parameter], list) else found[0]
            case "Fn::ValueOfAll":
                kind, of = argument
                return [attribute(kind, v, of) for v in values_of(kind)]
            case "Fn::Contains":
                among, value = evaluate(argument)
                return value in among
            case "Fn::EachMemberEquals":
                members, value = evaluate(argument)
                return all(m == value for m in members)
            case "Fn::EachMemberIn":
                members, among = evaluate(argument)
                return all(m in among for m in members)
            case "Fn::And":
                return all(evaluate(item) for item in argument)
            case "Fn::Or":
                return any(evaluate(item) for item in argument)
            case "Fn::Not":
                return not evaluate(argument[0])
            case "Fn::Equals":
                left, right = evaluate(argument)
                return left == right
            case _:
                return resolve(rule, scope)

    for name, rule in (template.get("Rules") or {}).items():
        if "RuleCondition" in rule and not evaluate(rule["RuleCondition"]):
            continue
        for assertion in rule.get("Assertions", []):
            if not evaluate(assertion["Assert"]):
                described = assertion.get("AssertDescription", "an assertion failed")
                raise TemplateError(f"Template validation error: Rule {name} failed: {described}")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# -- dependencies --------------------------------------------------------------------------------------------------


def dependencies(resources: dict[str, Any], included: set[str], conditions_: dict[str, bool]) -> dict[str, set[str]]:
    """For each included resource the included ones that must exist before it. An absent branch of Fn::If counts not."""

    def named(value: Any) -> Iterator[str]:
        if isinstance(value, list):
            for item in value:
                yield from named(item)
        elif isinstance(value, dict):
            call = _call_of(value)
            if call is None:
                for item in value.values():
                    yield from named(item)
                return
            name, argument = call
            if name == "Ref":
                yield argument
            elif name == "Fn::GetAtt":
                yield argument[0] if isinstance(argument, list) else argument.split(".")[0]
            elif name == "Fn::Sub":
                text, variables = (argument, {}) if isinstance(argument, str) else argument
                for found in re.findall(r"\$\{([^}!][^}]*)\}", text):
                    if found not in variables:
                        yield found.split(".")[0]
                yield from named(variables)
            elif name == "Fn::If":
                yield from named(argument[1 if conditions_.get(argument[0]) else 2])
            elif name != "Condition":
                yield from named(argument)

    graph = {}
    for name, resource in resources.items():
        if name not in included:
            continue
        explicit = _as_list(resource.get("DependsOn") or [])
        for wanted in explicit:
            if wanted not in resources:
                raise TemplateError(
                    f"Template format error: Unresolved resource dependencies [{wanted}] in the Resources block"
                )
        policies = [resource.get(key) for key in ("Properties", "CreationPolicy", "UpdatePolicy")]
        graph[name] = {n for n in itertools.chain(explicit, named(policies)) if n in included and n != name}
    _check_acyclic(graph)
    return graph


def _check_acyclic(graph: dict[str, set[str]]) -> None:
    left = dict(graph)
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        if not free:
            raise TemplateError(f"Circular dependency between resources: [{', '.join(sorted(left))}]")
        for name in free:
            del left[name]


def included(template: dict[str, Any], conditions_: dict[str, bool]) -> set[str]:
    """The resources whose condition holds."""
    found = set()
    for name, resource in template["Resources"].items():
        condition = resource.get("Condition")
        if condition is not None and condition not in conditions_:
            raise TemplateError(f"Template format error: Unresolved condition {condition} of resource {name}")
        if condition is None or conditions_[condition]:
            found.add(name)
    return found


def reversed_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """For each resource those that need it: what must go before it goes."""
    needed_by: dict[str, set[str]] = {name: set() for name in graph}
    for name, needs in graph.items():
        for needed in needs:
            needed_by[needed].add(name)
    return needed_by


def as_text(template: dict[str, Any]) -> str:
    return json.dumps(template, separators=(",", ":"))
