"""What checkov finds in the template. A finding is fixed, or stands in the Metadata of its resource with the reason.

checkov has a Python environment of its own (tests/setup.sh), because it pins older versions of what the others need.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import stack
from samtranslator.yaml_helper import yaml_parse

BESIDE = Path(sys.prefix).parent / "checkov" / "bin" / "checkov"
CHECKOV = str(BESIDE) if BESIDE.exists() else shutil.which("checkov")
pytestmark = pytest.mark.skipif(CHECKOV is None, reason="NOT RUN: checkov is not installed; tests/check installs it")


def without_explanations(text):
    kept, lines = [], iter(text.splitlines())
    for line in lines:
        if line.strip() == "checkov:":
            depth = len(line) - len(line.lstrip())
            line = next(following for following in lines if len(following) - len(following.lstrip()) <= depth)
        kept.append(line)
    assert "checkov" not in str(yaml_parse("\n".join(kept))["Resources"])
    return "\n".join(kept)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """File -> {kind -> {(resource, check)}}, of one run over three of them, because most of its time is its start."""
    folder, text = tmp_path_factory.mktemp("checkov"), stack.TEMPLATE.read_text()
    place = "directory=/etc/mirrorfleet\n"
    assert text.count(place) == 1
    for name, content in {
        "template": text,
        "unexplained": without_explanations(text),
        "leaking": text.replace(place, f"{place}              key='AKIAIOSFODNN7EXAMPLF'\n"),
    }.items():
        (folder / f"{name}.yaml").write_text(content)
    command = [CHECKOV, "--directory", folder, "--framework", "cloudformation", "secrets", "--output", "json", "--skip-download"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    reports = json.loads(done.stdout)
    results = {name: {"passed": set(), "failed": set(), "skipped": set()} for name in ("template", "unexplained", "leaking")}
    for report in reports if isinstance(reports, list) else [reports]:
        for kind in ("passed", "failed", "skipped"):
            for check in report["results"][f"{kind}_checks"]:
                results[Path(check["file_path"]).stem][kind].add((check["resource"].split(".")[-1], check["check_id"]))
    return results


def declared():
    return {
        (name, skip["id"]): skip["comment"]
        for name, resource in stack.source()["Resources"].items()
        for skip in resource.get("Metadata", {}).get("checkov", {}).get("skip", [])
    }


def test_every_finding_is_fixed_or_explained(found):
    assert found["template"]["failed"] == set()
    assert found["template"]["skipped"] == declared().keys()
    assert [where for where, why in declared().items() if len(why) < 15] == []
    assert len(found["template"]["passed"]) > 100


def test_nothing_is_explained_that_is_not_found(found):
    assert found["unexplained"]["skipped"] == set()
    assert found["unexplained"]["failed"] == declared().keys()


def test_a_secret_in_a_boot_script_would_be_found(found):
    assert [check for _, check in found["leaking"]["failed"] - found["template"]["failed"]] == ["CKV_SECRET_2"]
