#!/usr/bin/env bash
# Prove and time the fused kernels on a CUDA GPU, in one short run that needs no network.
#
#     bash bench/gpu.sh [--rehearse] [--minutes 8] OUTDIR [PART ...]
#
# `bash bench/gpu.sh --help` lists the parts. OUTDIR receives rows.jsonl, parts.csv, summary.md and
# gpu.tar.gz with every log, each of them complete after every part. `python -m bench gpu-results
# OUTDIR` then writes the rows into bench/results/ and the pages. The exit status is the number of
# parts that failed. --rehearse goes through the same parts on a CPU.
set -u
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m bench gpu "$@"
