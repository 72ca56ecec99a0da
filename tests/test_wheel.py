"""What a user of the wheel or the source archive has, without the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, built from this checkout and unpacked into an empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    zipfile.ZipFile(build_wheel(ROOT, folder)).extractall(folder / "site")
    return folder / "site"


def build_wheel(source: Path, folder: Path) -> Path:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return wheel


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


def test_the_wheel_resolves_the_config_by_bare_name_in_an_empty_folder(installed, tmp_path):
    result = run(installed, tmp_path, "rlhfv_jax.train", "--config=ddpo.py")
    assert result.returncode == 1 and "No data" in result.stderr  # the config was found, and the next thing is missing
    where = run(installed, tmp_path, "rlhfv_jax.train", "--help")
    assert where.returncode == 0 and "shipped configs: ddpo.py" in where.stdout


@pytest.mark.slow
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


def test_the_wheel_is_typed_and_carries_the_notices_of_what_it_copies(installed):
    assert (installed / "rlhfv_jax" / "py.typed").is_file()
    copied = ["preact.LICENSE.txt", "htm.LICENSE.txt", "WORDNET_LICENSE.txt"]
    (information,) = installed.glob("*.dist-info")
    notices = {path.name: path for path in (information / "licenses").rglob("*") if path.is_file()}
    assert sorted(notices) == sorted(["LICENSE", *copied])
    for name in copied:
        (inside,) = (installed / "rlhfv_jax").rglob(name)  # and beside what they are about
        assert inside.read_bytes() == notices[name].read_bytes() and inside.stat().st_size > 500


def test_version_changelog_and_citation_agree():
    from rlhfv_jax import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"rlhfv_jax-{__version__}-" in (ROOT / "docs" / "start.md").read_text()
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_source_archive_builds_the_same_wheel_and_holds_what_a_developer_needs(installed, tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(build, check=True, cwd=ROOT, timeout=300, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    for name in (
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "Makefile",
        "constraints.txt",
    ):
        assert (source / name).is_file(), name
    for folder in ("configs", "launch", "tests", "benchmarks", "docs/images"):
        assert any((source / folder).iterdir()), folder
    zipfile.ZipFile(build_wheel(source, tmp_path)).extractall(tmp_path / "site")
    ours, theirs = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (installed, tmp_path / "site")
    )
    assert ours == theirs
    result = run(tmp_path / "site", tmp_path, "rlhfv_jax.train", "--config=ddpo.py")
    assert result.returncode == 1 and "No data" in result.stderr
