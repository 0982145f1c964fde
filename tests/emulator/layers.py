"""Layers as instances and functions see them, where moto differs: a version by its ARN, with a place to download it from,
and lists in pages. Source: Lambda API reference, GetLayerVersionByArn, ListLayerVersions, DeleteLayerVersion.
"""

from __future__ import annotations

import json
import urllib.parse
import uuid
from typing import Any

from moto.awslambda.exceptions import LambdaClientError
from moto.awslambda.models import LambdaBackend, LayerVersion
from moto.awslambda.responses import LambdaResponse

ROUTE = "/_lab/layer/"


class Downloads:
    """What the addresses in ``Content.Location`` give. On AWS they are presigned, of a bucket of Lambda's own."""

    def __init__(self, endpoint: str):
        self._endpoint = endpoint
        self._held: dict[str, bytes] = {}
        self.damage = False
        """Whether each download has a wrong byte."""

    def address(self, version: LayerVersion) -> str:
        key = uuid.uuid4().hex
        self._held[key] = version.code_bytes
        return f"{self._endpoint}{ROUTE}{key}"

    def get(self, key: str) -> tuple[int, bytes, str]:
        held = self._held.get(key)
        if held is None:
            return 403, b"<Error><Code>AccessDenied</Code></Error>", "application/xml"
        if self.damage:
            held = held[:-1] + bytes([held[-1] ^ 1])
        return 200, held, "application/zip"

    def set(self, body: bytes) -> dict[str, bool]:
        """``{"damage": true}``."""
        self.damage = bool(json.loads(body)["damage"])
        return {"damage": self.damage}


def install(endpoint: str) -> Downloads:
    downloads = Downloads(endpoint)
    delete = LambdaBackend.delete_layer_version

    def found(self: LambdaResponse) -> str:
        arn = self._get_param("Arn")
        version = self.backend.layers_versions_by_arn(arn)
        if version is None:
            raise LambdaClientError("ResourceNotFoundException", "The resource you requested does not exist.")
        shown = version.get_layer_version()
        shown["Content"]["Location"] = downloads.address(version)
        return json.dumps(shown)

    def list_versions(self: LambdaResponse) -> str:
        name = urllib.parse.unquote(self.path.rsplit("/", 2)[-2])
        every = sorted(self.backend.list_layer_versions(name), key=lambda version: -version.version)
        size = int(self._get_param("MaxItems") or 50)
        begin = int(self._get_param("Marker") or 0)
        page: dict[str, Any] = {"LayerVersions": [v.get_layer_version() for v in every[begin : begin + size]]}
        if begin + size < len(every):
            page["NextMarker"] = str(begin + size)
        return json.dumps(page)

    def delete_version(self: LambdaBackend, layer_name: str, layer_version: str) -> None:
        # One that is not there is no error.
        if any(str(v.version) == str(layer_version) for v in self.list_layer_versions(layer_name)):
            delete(self, layer_name, layer_version)

    LambdaResponse.get_layer_version_by_arn = found  # which moto has not
    LambdaResponse.list_layer_versions = list_versions
    LambdaBackend.delete_layer_version = delete_version
    return downloads
