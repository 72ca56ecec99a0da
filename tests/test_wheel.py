"""What a user of the wheel has, without the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, built from this checkout and unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def test_the_wheel_resolves_the_config_by_bare_name_in_an_empty_folder(installed, tmp_path):
    result = run(installed, tmp_path, "rlhfv_jax.train", "--config=ddpo.py")
    assert result.returncode == 1 and "No data" in result.stderr  # the config was found, and the next thing is missing
    where = run(installed, tmp_path, "rlhfv_jax.train", "--help")
    assert where.returncode == 0 and "shipped configs: ddpo.py" in where.stdout


def test_every_program_of_the_wheel_has_help(installed, tmp_path):
    from rlhfv_jax.__main__ import PROGRAMS

    for program in PROGRAMS:
        result = run(installed, tmp_path, f"rlhfv_jax.{program}", "--help")
        assert result.returncode == 0 and f"python -m rlhfv_jax.{program}" in result.stdout


def test_the_wheel_holds_the_package_and_nothing_else(installed):
    tops = {path.name for path in installed.iterdir()}
    assert {name.split("-")[0] for name in tops} == {"rlhfv_jax"}
    code = "import rlhfv_jax, pathlib; print(pathlib.Path(rlhfv_jax.__file__).parent)"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd="/")
    assert found.stdout.strip() == str(installed / "rlhfv_jax")
