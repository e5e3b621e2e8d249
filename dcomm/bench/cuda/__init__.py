"""``dcomm bench --device cuda``: ranks that share one GPU, beside what else sums there.

* :mod:`~dcomm.bench.cuda.options`, :mod:`~dcomm.bench.cuda.plan`, :mod:`~dcomm.bench.cuda.case`: what is measured.
* :mod:`~dcomm.bench.cuda.engine`: what the bench needs of a library of GPU arrays;
  :mod:`~dcomm.bench.cuda.torch_engine`, :mod:`~dcomm.bench.cuda.torch_timing`: torch's.
* :mod:`~dcomm.bench.cuda.sides`: dcomm's ranks as threads and as processes; :mod:`~dcomm.bench.cuda.composites`,
  :mod:`~dcomm.bench.cuda.symm_mem`, :mod:`~dcomm.bench.cuda.nccl`, :mod:`~dcomm.bench.cuda.gloo_staged`: the rivals,
  and :mod:`~dcomm.bench.cuda.rivals` which there are and what they need.
* :mod:`~dcomm.bench.cuda.worker`: the child processes' side; :mod:`~dcomm.bench.cuda.groups` the parent's.
* :mod:`~dcomm.bench.cuda.run`, :mod:`~dcomm.bench.cuda.rows`, :mod:`~dcomm.bench.cuda.report`: rounds, rows, tables.

State: what talks to torch's CUDA has not run on a GPU. All else runs in CI: dcomm's rows on an emulated GPU, gloo and
torch's composites on CPU tensors.
"""
