#!/usr/bin/env bash
# Collect what a GPU machine without network needs, in two folders of this checkout that git ignores.
#
#   bash benchmarks/gpu_day/pack.sh DATA [PACKAGE==VERSION ...]
#
# DATA is a folder with make_cifar10.py, a script that writes CIFAR-10 and the CIFAR-N label files into the folder
# it is given, and with the files that the script needs. It runs on the GPU machine, with numpy and pillow.
#   .whl/    wheels for Python 3.12 on Linux x86-64 of what an image with torch, scikit-learn, pyarrow, matplotlib,
#            rich and pytest lacks; further packages are named as arguments
#   .data/   a copy of DATA; and the commit of this checkout, for the results. So pack after the last commit.
set -euo pipefail
usage() { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[[ $# -ge 1 ]] || usage
[[ -f $1/make_cifar10.py ]] || { echo "error: DATA=$1: there is no file $1/make_cifar10.py" >&2; usage; }
data=$(cd "$1" && pwd); shift
cd "$(dirname "$0")/../.."
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
  --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$work/whl" \
  kornia==0.9.0 kornia-rs==0.2.0 faiss-cpu==1.15.1 \
  pydantic==2.14.3 pydantic-core==2.50.4 typing-inspection==0.4.5 annotated-types==0.8.0 typing-extensions==4.16.0 "$@"
mkdir "$work/data"
cp -r --no-preserve=mode "$data/." "$work/data"
git describe --always --dirty --abbrev=40 '--exclude=*' >"$work/data/commit"

for name in whl data; do rm -rf ".$name"; mv "$work/$name" ".$name"; done
du -sh .whl .data
echo "commit $(cat .data/commit)"
