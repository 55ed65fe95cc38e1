"""An installed package works where this checkout is not on the path."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from configparser import ConfigParser
from importlib.metadata import requires
from pathlib import Path
from zipfile import ZipFile

import pytest

from verl_ext.cpu import update

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("recipe", "verl_ext", "hydra_plugins")

LOAD = """
import json, os, site, sys
from importlib import import_module
from importlib.util import find_spec

target, checkout = sys.argv[1:]
before = [path for path in sys.path if os.path.realpath(path) != checkout]
sys.path[:] = before
site.addsitedir(target)  # reads .pth files, as the interpreter does for site-packages
sys.path[:] = [path for path in sys.path if path not in before] + before

import hydra

verl = os.path.join(find_spec("verl").submodule_search_locations[0], "trainer", "config")
with hydra.initialize_config_dir(verl, version_base=None):
    given = ["+recipe=prune_opd", "+platform=cpu", "prune_opd.teacher.path=T"]
    config = hydra.compose("ppo_trainer", given)

names = ("hydra_plugins.prune_opd_searchpath", "recipe.prune_opd", "verl_ext")
print(json.dumps({
    "files": [import_module(name).__file__ for name in names],
    "teacher": config.prune_opd.teacher.path,
    "trainer": config.trainer.v1.trainer_mode,
    "device": config.trainer.device,
}))
"""


def pip(*arguments: object) -> None:
    options = ("--quiet", "--no-index", "--no-deps", "--disable-pip-version-check")
    subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments), *options], check=True, timeout=120
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the checkout: building must not leave anything in it."""
    copy = tmp_path_factory.mktemp("source")
    leftovers = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for package in PACKAGES:
        shutil.copytree(CHECKOUT / package, copy / package, ignore=leftovers)
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / file, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    (file,) = folder.glob("*.whl")
    return file


def test_wheel_holds_every_module_configuration_and_page(wheel, source):
    expected = {
        str(file.relative_to(source))
        for package in PACKAGES
        for file in (source / package).rglob("*")
        if file.suffix in (".py", ".yaml", ".md", ".txt", ".html")
        and file.parent.parent != source / "verl_ext" / "cpu"  # distributions of their own
        and file.parent.name != "sgl_kernel"
    }
    with ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert expected <= inside
    assert "recipe/prune_opd/conf/recipe/prune_opd.yaml" in inside
    assert {name.split("/")[0] for name in inside} == set(PACKAGES)
    assert not {"recipe/__init__.py", "hydra_plugins/__init__.py"} & inside, (
        "others put their own modules there"
    )


def test_what_is_published_as_source_makes_the_same_wheel(wheel, source, tmp_path):
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--offline", "--no-build-isolation"]
    subprocess.run([*build, "--sdist", "--out-dir", tmp_path, source], check=True, timeout=120)
    (archive,) = tmp_path.glob("*.tar.gz")
    subprocess.run([*build, "--wheel", "--out-dir", tmp_path, archive], check=True, timeout=120)
    (again,) = tmp_path.glob("*.whl")
    assert again.name == wheel.name
    with ZipFile(wheel) as direct, ZipFile(again) as by_source:
        assert {file.filename: file.CRC for file in direct.infolist()} == {
            file.filename: file.CRC for file in by_source.infolist()
        }


def test_the_command_starts_from_an_installed_wheel(wheel, tmp_path):
    """In a fresh environment, which borrows the dependencies of this one."""
    venv.create(tmp_path / "fresh", with_pip=False)
    site = next((tmp_path / "fresh").glob("lib/python*/site-packages"))
    pip("install", "--target", site, wheel)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    code = (
        "import sys; from importlib.metadata import entry_points as points; sys.argv[1:] = ['-h'];"
    )
    code += " points(group='console_scripts')['prune-opd'].load()()"
    python = tmp_path / "fresh" / "bin" / "python"
    run = subprocess.run(
        [python, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "diagnose" in run.stdout


def test_entry_points_lead_to_modules_of_the_wheel(wheel):
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        parser = ConfigParser()
        parser.read_string(archive.read(name).decode())
        inside = set(archive.namelist())
    points = {
        target
        for group in ("verl.plugins", "vllm.general_plugins")
        for target in parser[group].values()
    }
    assert len(points) == 3
    for point in points:
        path = point.split(":")[0].replace(".", "/")
        assert {f"{path}.py", f"{path}/__init__.py"} & inside


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_hydra_finds_the_recipe(editable, wheel, source, tmp_path):
    target = tmp_path / "site"
    if editable:
        pip("install", "--no-build-isolation", "--target", target, "--editable", source)
    else:
        pip("install", "--target", target, wheel)
    command = [sys.executable, "-I", "-c", LOAD, str(target), str(CHECKOUT)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    home = source if editable else target
    assert [Path(file).resolve().is_relative_to(home.resolve()) for file in found["files"]] == [
        True
    ] * 3, found
    assert (found["teacher"], found["trainer"], found["device"]) == ("T", "prune_opd", "cpu")


PURE = """
import sys
from importlib import import_module

class Blocker:
    def find_spec(self, name, path=None, target=None):
        blocked = "verl", "ray", "vllm", "omegaconf", "hydra", "tensordict", "transformers"
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for module in sys.argv[1:]:
    import_module(module)
"""


def import_blocked(*modules: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PURE, *modules], capture_output=True, text=True, timeout=60
    )


def test_pure_modules_need_torch_alone():
    names = ("method.drift", "method.reward", "method.loss", "method.budget", "method.gates")
    run = import_blocked(*(f"recipe.prune_opd.{name}" for name in names), "verl_ext.cpu")
    assert run.returncode == 0, run.stderr


def test_the_blocker_blocks():
    run = import_blocked("recipe.prune_opd.config")
    assert "omegaconf is blocked" in run.stderr


GPU = {"vllm": "vllm==0.24.0", "sglang": "sglang==0.5.12"}
UNREACHABLE = (
    "dns error",
    "error sending request",
    "client error (Connect)",
    "operation timed out",
    "Could not connect",
)


@pytest.mark.parametrize(
    "python", ["3.12", *(pytest.param(old, marks=pytest.mark.slow) for old in ("3.10", "3.11"))]
)
@pytest.mark.parametrize("engine", GPU)
def test_gpu_installation_resolves(engine: str, python: str):
    """By the real index: verl's pins, flash-attention and the rest of its ``fsdp`` extra, with
    either engine."""
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--no-annotate",
        "--no-header",
    ]
    command += [
        "--extra",
        engine,
        "--python-version",
        python,
        "--python-platform",
        "x86_64-manylinux_2_35",
    ]
    run = subprocess.run(
        [*command, "pyproject.toml"], cwd=CHECKOUT, capture_output=True, text=True, timeout=300
    )
    if run.returncode and any(sign in run.stderr for sign in UNREACHABLE):
        pytest.skip(f"no package index can be reached: {run.stderr.strip().splitlines()[-1]}")
    assert run.returncode == 0, run.stderr
    found = set(run.stdout.splitlines())
    assert {
        GPU[engine],
        "torch==2.11.0",
        "transformers==5.9.0",
        "flash-attn==2.8.3",
        "verl==0.9.1",
    } <= found
    names = {line.partition("==")[0] for line in found}
    assert {"liger-kernel", "cupy-cuda13x", "trl", "flash-linear-attention", "math-verify"} <= names


def test_what_these_tests_pin_is_what_verl_asks_for():
    wanted = "".join(requires("verl")).replace(" ", "")
    for pin in (*GPU.values(), "torch==2.11.0", "transformers==5.9.0", "flash-attn==2.8.3"):
        assert pin in wanted


RESOLVED = {
    "3.10": {"numpy": "2.2.6", "torch": "2.14.0", "tomli": "2.5.0", "new": "1", "nvidia-nccl": "9"},
    "3.11": {"numpy": "2.3.5", "torch": "2.14.0", "new": "1", "openai": "4"},
}
LOCK = """# Head.
torch==2.13.0
numpy==2.2.6
own==1.0
"""


def test_a_lock_gets_what_was_resolved_and_keeps_what_is_its_own():
    after = update.rewritten(LOCK, RESOLVED)
    assert after.splitlines() == [
        "# Head.",
        "torch==2.14.0",
        "new==1",
        'numpy==2.3.5 ; python_version >= "3.11"',
        'numpy==2.2.6 ; python_version < "3.11"',
        "own==1.0",
        'tomli==2.5.0 ; python_version < "3.11"',
    ]
    assert update.rewritten(after, RESOLVED) == after
    assert update.changes(LOCK, after)[0] == "+ new==1"
    assert "- torch==2.13.0" in update.changes(LOCK, after)
    assert update.changes(after, after) == []


def test_the_lock_has_the_form_that_an_update_writes():
    text = update.FILE.read_text()
    assert update.rewritten(text, {}) == text


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_cleaning_leaves_what_runs_wrote(engine):
    command = ["make", "-n", "clean", f"ENGINE={engine}"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    removed = done.stdout.split()
    assert ".venv" in removed
    assert not {"runs", "outputs", "checkpoints", "data"} & set(removed)


def test_the_set_up_advises_nothing_that_removes_more_than_it_made():
    assert "make clean" not in (CHECKOUT / "verl_ext/cpu/install.sh").read_text()


@pytest.mark.parametrize(
    ("cuda", "said"), [("'13.0'", "torch is built for CUDA 13.0, "), ("None", "")]
)
def test_a_torch_for_cuda_is_named_where_it_cannot_even_be_imported(tmp_path, cuda, said):
    """Its libraries are not installed with it."""
    script = (CHECKOUT / "verl_ext/cpu/install.sh").read_text()
    program = script.rpartition('"$python" -c \'')[2].rstrip().removesuffix("'")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise ImportError('libcudnn.so.9')")
    (tmp_path / "torch/version.py").write_text(f"cuda = {cuda}")
    given = {"cwd": tmp_path, "env": {"PYTHONPATH": str(tmp_path)}}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, **given)
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    assert done.returncode == bool(said)
