"""The benchmark engine behind ``dcomm bench``, ``benchmarks/all_reduce.py`` and the demonstration; NumPy only.

* :mod:`~dcomm.bench.options`, :mod:`~dcomm.bench.plan`: what is asked for, and the cases to measure.
* :mod:`~dcomm.bench.collectives`, :mod:`~dcomm.bench.exact`: what each collective must give, and inputs whose exact
  result is known.
* :mod:`~dcomm.bench.ranks`, :mod:`~dcomm.bench.worker`: the rank processes, parent's and child's side.
* :mod:`~dcomm.bench.gloo`, :mod:`~dcomm.bench.mpi`: the peers.
* :mod:`~dcomm.bench.rounds`, :mod:`~dcomm.bench.summary`, :mod:`~dcomm.bench.figures`: measuring in turn, rows, and
  the promised figures.
* :mod:`~dcomm.bench.core_state`, :mod:`~dcomm.bench.machine`, :mod:`~dcomm.bench.report`,
  :mod:`~dcomm.bench.plot`: where it was measured, and how it is shown.
"""
