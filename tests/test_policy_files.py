"""What stands beside the code is whole: the citation, the templates, the scripts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import trl_opd

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))

#: What GitHub knows as a part of a form.
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def test_the_citation_is_of_this_version_and_has_what_the_format_asks_for():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == trl_opd.__version__
    assert {"message", "title", "authors"} <= set(citation)
    assert all("name" in author or "family-names" in author for author in citation["authors"])


def test_the_changelog_begins_with_this_version():
    found = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found[1] == trl_opd.__version__


@pytest.mark.parametrize("name", ["SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / name).read_text())
    assert all((ROOT / link).exists() for link in links if not link.startswith("http")), links


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert set(form) <= {"blank_issues_enabled", "contact_links"}
        return
    assert {"name", "description", "body"} <= set(form)
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids))
    assert {part["type"] for part in form["body"]} <= KINDS
    assert all("label" in part["attributes"] for part in form["body"] if part["type"] != "markdown")


def test_the_slurm_script_is_a_shell_script():
    script = ROOT / "trainers" / "slurm" / "train.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text().splitlines()
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(n < first_command for n, line in enumerate(lines) if line.startswith("#SBATCH"))


def test_the_slurm_script_starts_one_launcher_a_machine(tmp_path):
    """With `srun`, `scontrol` and `accelerate` replaced by programs that only say how they were called."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in (
        ("scontrol", "echo first-host; echo second-host"),
        ("accelerate", 'printf "%s\\n" "$@"'),
        ("srun", 'shift; SLURM_NODEID=1 exec "$@"'),
    ):
        (tools / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (tools / name).chmod(0o755)
    (tools / "activate").write_text(f"PATH={tools}:$PATH\n")
    asked = ["sdpo", "--config", "qwen3-8b/sdpo", "--run_name", "two words"]
    done = subprocess.run(
        ["bash", str(ROOT / "trainers/slurm/train.sbatch"), *asked],
        env={"PATH": "/usr/bin:/bin", "VENV": str(tmp_path), "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "x[1-2]"},
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    said = done.stdout.split("\n")[:-1]
    assert said == [
        "launch", "--config_file", "trainers/accelerate_configs/fsdp2.yaml", "--num_machines", "2",
        "--num_processes", "16", "--machine_rank", "1", "--main_process_ip", "first-host",
        "--main_process_port", "29500", "--module", "trl_opd", "train", *asked,
    ]  # fmt: skip
