#!/usr/bin/env bash
# Prove and time the fused kernels on a CUDA machine; needs no network.
#
#     bash bench/gpu.sh OUTDIR [PART ...]
#
# Without parts, all of them run. Every part takes less than nine minutes and leaves its log, and a
# JUnit report where it is a test, in OUTDIR. The exit status is the number of parts that failed.
#
#   info         versions and the device            determinism  checkpoints, same bits
#   report       machine code of every kernel       offsets      more than 2^31 elements
#   parity       65 cases, outputs and gradients    graph        captures: rollouts, iterations
#   gradients    bf16 and large grids, both         persistent   the kernel that waits in itself
#   operators    opcheck, autograd, refusals        compile      torch.compile, one graph
#   gpu          the threshold, wide numbers        training     500 iterations, 3 seeds
#   race         250 repetitions, same bits         host         host cost without launches
#   mutants      every deliberate mistake is seen   single       single steps, as parity
#   timing       kernels, iterations, memory, host cost; eager and compiled beside them; the
#                trainer's iteration, one graph, beside its rollout alone
#   bench        the quick benchmark

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
  parts=(info report parity single gradients operators gpu mutants race determinism offsets graph
    persistent compile training host timing bench)
fi

tests() { # NAME FILE EXPRESSION
  "$python" -m pytest -q -rs --junitxml="$out/$1.xml" "$2" -k "$3"
}

run_part() {
  case $1 in
    info)
      "$python" -c "import torch, triton; print(torch.__version__, triton.__version__, torch.version.cuda, torch.cuda.get_device_name(), torch.cuda.get_device_capability())" &&
        nvidia-smi
      ;;
    report) "$python" -m bench.kernel_report --large --json "$out/kernels.json" ;;
    parity) tests parity tests/kernels/test_rollout.py "" ;;
    single) tests single tests/kernels/test_single.py "" ;;
    gradients) tests gradients tests/kernels/test_gpu.py test_parity ;;
    mutants) tests mutants tests/kernels/test_mutants.py "" ;;
    operators) tests operators tests/kernels/test_operators.py "" ;;
    gpu) tests gpu tests/kernels "test_threshold.py or test_offsets.py" ;;
    race) tests race tests/kernels/test_gpu.py race ;;
    determinism) tests determinism tests/kernels/test_gpu.py determinism ;;
    offsets) tests offsets tests/kernels/test_gpu.py offsets ;;
    graph) tests graph tests/kernels "graph and not compiler and not test_graphs.py" ;;
    persistent) tests persistent tests/kernels "persistent and not race" ;;
    compile) tests compile tests "test_graph_of_the_compiler or test_compiled or test_a_compiled" ;;
    training) tests training tests/kernels/test_gpu.py training ;;
    host) "$python" -m bench.host_cost --json "$out/host.json" ;;
    bench) "$python" -m bench.run --quick --csv "$out/quick.csv" ;;
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
