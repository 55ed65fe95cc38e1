#!/usr/bin/env bash
# Sets up an environment, for `make`:  PYTHON=python3.11 bash verl_ext/cpu/install.sh vllm|sglang|pins FOLDER
#
# vllm, sglang   the CPU environment with that engine, every version as in requirements-*.txt
# pins           what a GPU user gets with the extra `vllm`, less flash-attention, which only nvcc can build; where the index
#                has no CPU build of its torch, the one for CUDA, which runs on a CPU as well
#
# uv does this in half a minute. pip, which looks up one package after another, only where there is no uv for the platform.
set -euo pipefail
kind=$1 venv=$2 here=$(dirname "$0")
root=$here/../..

"${PYTHON:-python3}" -c '
import sys
found = sys.version_info[:2]
if not (3, 10) <= found <= (3, 12):
    sys.exit("Python 3.10 to 3.12 is needed, this is %d.%d; choose one with make PYTHON=..." % found)'
"${PYTHON:-python3}" -m venv "$venv"
python=$venv/bin/python

setting() { # a setting of pip's, from its environment variable or its configuration file
  local variable=PIP_$(tr a-z- A-Z_ <<<"$1")
  if [[ -n ${!variable:-} ]]; then echo "${!variable}"; else "$python" -m pip config get "global.$1" 2>/dev/null || true; fi
}

# uv reads none of pip's settings: the index and the folders of wheels are handed on; what is set for uv itself wins.
hand_on() { # VARIABLE SETTING
  local value=${!1:-$(setting "$2")}
  if [[ -n $value ]]; then export "$1=$value"; fi
}

if "$python" -m pip install --quiet --only-binary uv "$(grep '^uv==' "$here/requirements.txt")"; then
  hand_on UV_DEFAULT_INDEX index-url
  hand_on UV_FIND_LINKS find-links
  # As pip does. Where Python may not write bytecode itself, every process would compile all that it imports.
  export UV_COMPILE_BYTECODE=1
  install() { "$venv/bin/uv" pip install --quiet --python "$python" "$@"; }
else
  echo "uv could not be installed: pip does its work, which takes some minutes" >&2
  install() { "$python" -m pip install --quiet "$@"; }
fi

if [[ $kind == pins ]]; then
  overrides=$(mktemp)
  trap 'rm -f "$overrides"' EXIT
  echo "flash-attn ; python_version < '3'" >"$overrides"
  install --override "$overrides" --editable "$root[vllm,test]" setuptools
  exit
fi

install --no-deps -r "$here/requirements-$kind.txt"
install --no-deps --no-build-isolation --editable "$root"
case $kind in
  vllm) install --no-deps --no-build-isolation "$here/vllm_alias" ;;
  sglang)
    install --no-deps --no-build-isolation "$here/sglang"
    # Has every process of the environment load it, SGLang's own too.
    "$python" -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "sglang_on_cpu.pth").write_text("import sglang_on_cpu\n")'
    ;;
esac
# Not imported: a build for CUDA needs libraries that are not here.
"$python" -c '
import runpy, sys
from importlib.util import find_spec
(torch,) = find_spec("torch").submodule_search_locations
cuda = runpy.run_path(f"{torch}/version.py")["cuda"]
if cuda:
    sys.exit(
        f"torch is built for CUDA {cuda}, but the engines here need the CPU build: "
        f"remove {sys.prefix} and run UV_TORCH_BACKEND=cpu make install, which takes it from PyTorch, or point pip to"
        " its CPU wheels"
    )'
