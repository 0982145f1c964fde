"""The transform AWS::Serverless-2016-10-31, by the translator that AWS itself uses."""

from __future__ import annotations

import copy
import logging
from typing import Any

from samtranslator.model.exceptions import InvalidDocumentException
from samtranslator.translator.transform import transform as translate

from .templates import TemplateError

# It warns of metrics that nobody collects here.
logging.getLogger("samtranslator").setLevel(logging.ERROR)

TRANSFORM = "AWS::Serverless-2016-10-31"


class _ManagedPolicies:
    """Names of AWS' managed policies that a function may use without their ARN."""

    def load(self) -> dict[str, str]:
        names = ("AWSLambdaBasicExecutionRole", "AWSLambdaSQSQueueExecutionRole", "AWSXrayWriteOnlyAccess")
        return {name: f"arn:aws:iam::aws:policy/service-role/{name}" for name in names}


def transformed(template: dict[str, Any], parameters: dict[str, Any]) -> dict[str, Any]:
    """The template without the transform; one that does not ask for it comes back as it is."""
    declared = template.get("Transform")
    wanted = declared if isinstance(declared, list) else [declared] if declared else []
    unknown = [name for name in wanted if name != TRANSFORM]
    if unknown:
        raise TemplateError(f"No transform named {unknown[0]} found.")
    if not wanted:
        return template
    try:
        return translate(copy.deepcopy(template), dict(parameters), _ManagedPolicies())
    except InvalidDocumentException as wrong:
        reasons = "; ".join(cause.message for cause in wrong.causes) or wrong.message
        raise TemplateError(f"Transform {TRANSFORM} failed with: {reasons}") from None
