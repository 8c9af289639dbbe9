#!/usr/bin/env bash
# Prove and time the fused kernels on a CUDA machine; needs no network.
#
#     bash bench/gpu.sh OUTDIR [PART ...]
#
# Without parts, all of them run. Every part takes less than nine minutes and leaves its log, and a
# JUnit report where it is a test, in OUTDIR. The exit status is the number of parts that failed.

set -u
if [ $# -lt 1 ]; then
  echo "usage: bash bench/gpu.sh OUTDIR [PART ...]" >&2
  exit 64
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
limit=${LIMIT:-540}
parts=("$@")
if [ ${#parts[@]} -eq 0 ]; then
  parts=(info report parity gpu race determinism offsets graph training timing)
fi

tests() { # NAME FILE EXPRESSION
  "$python" -m pytest -q --junitxml="$out/$1.xml" "$2" -k "$3"
}

run_part() {
  case $1 in
    info)
      "$python" -c "import torch, triton; print(torch.__version__, triton.__version__, torch.version.cuda, torch.cuda.get_device_name(), torch.cuda.get_device_capability())" &&
        nvidia-smi
      ;;
    report) "$python" -m bench.kernel_report --large --json "$out/kernels.json" ;;
    parity) tests parity tests/kernels/test_rollout.py "" ;;
    gpu) tests gpu tests/kernels "operators or threshold or offsets or test_parity" ;;
    race) tests race tests/kernels/test_gpu.py race ;;
    determinism) tests determinism tests/kernels/test_gpu.py determinism ;;
    offsets) tests offsets tests/kernels/test_gpu.py offsets ;;
    graph) tests graph tests/kernels/test_gpu.py graph ;;
    training) tests training tests/kernels/test_gpu.py training ;;
    timing) "$python" -m tests.kernels.gpu_timing "$out" ;;
    *)
      echo "unknown part: $1" >&2
      return 64
      ;;
  esac
}

export -f run_part tests
export out python PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
failed=0
for part in "${parts[@]}"; do
  started=$SECONDS
  timeout "$limit" bash -c 'run_part "$1"' _ "$part" >"$out/$part.log" 2>&1
  status=$?
  echo "$part,$status,$((SECONDS - started))" | tee -a "$out/parts.csv"
  [ $status -eq 0 ] || failed=$((failed + 1))
done
exit $failed
